// The parts of the live panel. Each is {node, update(history)}; update says whether there is anything to show.

import { HeatMap, Sparkline } from './charts.js';
import { el } from './dom.js';
import { bandwidth, bytes, count, duration, number, percent } from './format.js';
import { counter, gauge } from './rates.js';

const generated = counter('generation_tokens_total');
const read = counter('prompt_tokens_total');

const section = (title, ...children) => el('section', {}, el('h3', {}, title), ...children);

function speed() {
  const value = el('strong', {}, '0');
  const reading = el('span', { class: 'muted' });
  const spark = new Sparkline('Tokens per second');
  const node = section('Speed', el('p', { class: 'big' }, value, el('span', {}, ' tokens/s')), spark.node, reading);
  const update = (history) => {
    const rate = history.rate(generated);
    if (rate === null) return false;
    value.textContent = number(rate);
    spark.update(history.rates(generated));
    const prompts = history.rate(read);
    reading.textContent = prompts === null ? '' : `prompts: ${number(prompts)} tokens/s`;
    return true;
  };
  return { node, update };
}

// What each tile shows, or `null` to leave it out.
const TILES = [
  ['Running', (history) => whole(history, 'num_requests_running')],
  ['Waiting', (history) => whole(history, 'num_requests_waiting')],
  ['First token after', (history) => time(history, 'time_to_first_token_seconds')],
  ['Between tokens', (history) => time(history, 'inter_token_latency_seconds')],
  ['Prompt from cache', cacheHits],
  ['Preempted', (history) => grown(history, 'num_preemptions_total')],
];

function tiles() {
  const list = el('dl', { class: 'tiles' });
  const entries = TILES.map(([name, show]) => {
    const value = el('dd');
    return { tile: el('div', {}, el('dt', {}, name), value), value, show };
  });
  const update = (history) => {
    const known = entries.filter(({ value, show }) => {
      const text = show(history);
      value.textContent = text ?? '';
      return text !== null;
    });
    list.replaceChildren(...known.map(({ tile }) => tile));
    return known.length > 0;
  };
  return { node: section('Requests', list), update };
}

function whole(history, name) {
  const value = gauge(name)(history.latest);
  return value === undefined ? null : number(value);
}

function time(history, name) {
  const mean = history.mean(name);
  return mean === null ? null : duration(mean);
}

function grown(history, name) {
  const total = counter(name)(history.latest);
  return total ? number(total) : null;
}

function cacheHits(history) {
  const queries = counter('prefix_cache_queries_total')(history.latest);
  const hits = counter('prefix_cache_hits_total')(history.latest);
  return queries > 0 && hits !== undefined ? percent(hits / queries) : null;
}

function cache() {
  const fill = el('span');
  const bar = el('div', { class: 'track', role: 'meter', 'aria-label': 'KV cache in use', 'aria-valuemin': 0, 'aria-valuemax': 100 }, fill);
  const value = el('span', { class: 'value' });
  const node = section('KV cache', el('div', { class: 'gauge' }, bar, value));
  const update = (history) => {
    const share = gauge('kv_cache_usage_perc')(history.latest);
    if (share === undefined) return false;
    fill.style.width = `${share * 100}%`;
    bar.setAttribute('aria-valuenow', Math.round(share * 100));
    value.textContent = `${percent(share)} in use`;
    return true;
  };
  return { node, update };
}

// Where a layer's time goes, in seconds per call; `null` when it is not reported.
const HOPS = [
  ['Attention waits', (history) => history.mean('attention_wait_on_experts_seconds')],
  ['Round trip', (history) => history.mean('expert_rpc_latency_seconds')],
  ['Experts compute', computeTime],
  ['Hop alone', hopTime],
];

function hops() {
  const rows = HOPS.map(([name, measure]) => {
    const fill = el('span');
    const value = el('span', { class: 'value' });
    const node = el('div', { class: 'gauge', hidden: true }, el('span', { class: 'name' }, name), el('div', { class: 'track', 'aria-hidden': 'true' }, fill), value);
    return { node, fill, value, measure };
  });
  const node = section('Time per layer call', ...rows.map((row) => row.node));
  const update = (history) => {
    const times = rows.map((row) => row.measure(history));
    const longest = Math.max(...times.map((seconds) => seconds ?? 0));
    rows.forEach((row, i) => {
      row.node.hidden = times[i] === null;
      row.value.textContent = times[i] === null ? '' : duration(times[i]);
      row.fill.style.width = `${longest > 0 ? (100 * (times[i] ?? 0)) / longest : 0}%`;
    });
    return longest > 0;
  };
  return { node, update };
}

function computeTime(history) {
  const sum = (name) => (report) => {
    const values = Object.values(report.shards).map((shard) => shard[name]).filter((value) => value !== undefined);
    return values.length ? values.reduce((total, value) => total + value, 0) : undefined;
  };
  const measured = history.mean('expert_layer_compute_seconds');
  if (measured !== null) return measured;
  const calls = history.growth(sum('expert_calls_total'));
  return calls > 0 ? history.growth(sum('expert_compute_seconds_total')) / calls : null;
}

// Shards compute side by side, so the difference holds for one of them and is a bound for more.
function hopTime(history) {
  const total = history.mean('expert_rpc_latency_seconds');
  const compute = computeTime(history);
  return total === null || compute === null || compute > total ? null : total - compute;
}

function experts() {
  const map = new HeatMap();
  const shards = el('dl', { class: 'pairs' });
  const node = section('Experts', map.node, shards);
  const update = (history) => {
    const layers = history.heat();
    map.node.hidden = !layers.length;
    map.update(layers);
    const names = Object.keys(history.latest.shards);
    shards.replaceChildren(...names.flatMap((name) => fact(`Shard ${name}`, shardText(history, name))));
    return layers.length > 0 || names.length > 0;
  };
  return { node, update };
}

function shardText(history, name) {
  const values = history.latest.shards[name];
  const rate = (key) => (values[key] === undefined ? null : history.rate((report) => report.shards[name]?.[key] ?? 0));
  const calls = rate('expert_calls_total');
  const traffic = rate('expert_bytes_read_total');
  const queue = values.expert_queue_depth;
  return [
    calls !== null && `${number(calls)} calls/s`,
    traffic !== null && `${bandwidth(traffic)} of weights`,
    queue > 0 && `${number(queue)} queued`,
  ].filter(Boolean).join(' · ') || 'connected';
}

function facts() {
  const list = el('dl', { class: 'pairs' });
  const update = (history) => {
    const { model, engine, engines, gauges } = history.latest;
    const memory = Object.entries(gauges).filter(([name]) => name.endsWith('_bytes'));
    list.replaceChildren(
      ...fact('Model', model.name),
      ...fact('Architecture', model.architecture),
      ...fact('Weights', [model.parameters && count(model.parameters), model.quantization, model.nbytes && bytes(model.nbytes)].filter(Boolean).join(' · ')),
      ...fact('Context', engine.context_length ? `${engine.context_length.toLocaleString('en')} tokens` : ''),
      ...memory.flatMap(([name, value]) => fact(title(name), bytes(value))),
      ...(isSingle(engines) ? fact('Engine', stateText(engine)) : []),
    );
    return true;
  };
  return { node: section('Model and memory', list), update };
}

/** Each of several engines with its requests, and what became of services that crashed. */
function services() {
  const list = el('dl', { class: 'pairs' });
  const crashed = el('div', { class: 'muted' });
  const update = (history) => {
    const { engines, crashes } = history.latest;
    list.replaceChildren(...(isSingle(engines) ? [] : Object.keys(engines).flatMap((label) => engineFact(history.latest, label))));
    crashed.replaceChildren(...Object.entries(crashes ?? {}).map(([name, text]) => el('p', {}, `${name} ${text}`)));
    return list.hasChildNodes() || crashed.hasChildNodes();
  };
  return { node: section('Services', list, crashed), update };
}

const isSingle = (engines) => Object.keys(engines ?? {}).length < 2;

function engineFact({ engines, gauges }, label) {
  const running = gauges[`num_requests_running{engine="${label}"}`];
  const state = engines[label].state === 'unavailable' ? 'away' : stateText(engines[label]);
  return fact(`Engine ${label}`, running === undefined ? state : `${state} · ${running} running`);
}

const stateText = ({ state, detail }) => [state, detail].filter(Boolean).join(': ');

const fact = (name, value) => (value ? [el('dt', {}, name), el('dd', {}, value)] : []);

/** `kv_cache_bytes` → `Kv cache`. */
function title(name) {
  const words = name.replace(/_bytes$/, '').replaceAll('_', ' ');
  return words.replace(/^kv\b/, 'KV').replace(/^gpu\b/, 'GPU').replace(/^[a-z]/, (letter) => letter.toUpperCase());
}

export const SECTIONS = [speed, tiles, cache, hops, experts, services, facts];
