// Server-sent events from a fetched stream: EventSource can neither POST nor send a key.

/** The `data` of each event of a byte stream; comments (the server's signs of life) are left out. */
export async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      const lines = (rest + (value ?? '')).split(/\r\n|\n|\r(?!$)/);
      rest = done ? '' : lines.pop();
      for (const line of lines) {
        if (line === '' && data.length) {
          yield data.join('\n');
          data = [];
        } else if (line.startsWith('data:')) {
          data.push(line.slice(line[5] === ' ' ? 6 : 5));
        }
      }
      if (done) break;
    }
    if (data.length) yield data.join('\n');
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading early hangs up
  }
}
