"""Regular expressions of a file against a model's paths, in bounded time.

Python's engine backtracks, and nothing stops it from inside: a pattern like `(.*)*x` takes for ever on a path
of thirty characters. So it runs in a child of its own, whose CPU time is limited.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence

from trimaran.errors import ConfigError
from trimaran.rules.rule import Rule

CPU_S = 3
_WALL_S = 120.0  # a busy machine gives a child little of its time
_TIME_IS_UP = (-signal.SIGXCPU, -signal.SIGKILL)

_CHILD = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_S}, {CPU_S}))
patterns, paths = json.load(sys.stdin)
for pattern in patterns:
    search = re.compile(pattern).search
    print(json.dumps([index for index, path in enumerate(paths) if search(path)]), flush=True)
"""


def find_matches(rules: Sequence[Rule], paths: Sequence[str]) -> list[frozenset[int]]:
    """For each rule the indices of the paths that its pattern is found in; all, if it has none.

    Raises:
        ConfigError: a pattern takes too long; it names the rule.
    """
    with_pattern = [rule for rule in rules if rule.pattern is not None]
    answers = _ask([rule.pattern or "" for rule in with_pattern], paths) if with_pattern else []
    if len(answers) < len(with_pattern):
        raise _slow(with_pattern[len(answers)])
    found = iter(answers)
    everything = frozenset(range(len(paths)))
    return [everything if rule.pattern is None else frozenset(next(found)) for rule in rules]


def _ask(patterns: Sequence[str], paths: Sequence[str]) -> list[list[int]]:
    """The child's answers, one for each pattern that it came to."""
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _CHILD]
    question = json.dumps([patterns, paths])
    try:
        done = subprocess.run(
            command, input=question, capture_output=True, text=True, timeout=_WALL_S, check=False
        )
        answer = done.stdout
        if done.returncode not in (0, *_TIME_IS_UP):
            raise ConfigError(f"rules could not be matched: {done.stderr.strip()[-200:]}")
    except subprocess.TimeoutExpired as error:
        answer = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    # A line that was cut off when the time was up is no answer.
    return [json.loads(line) for line in answer.splitlines(keepends=True) if line.endswith("\n")]


def _slow(rule: Rule) -> ConfigError:
    return rule.where.error(
        f"match.name {rule.pattern!r:.120} takes more than {CPU_S} s on this model's module paths",
        "take a pattern without repeats within repeats: [^.]+ in place of (.*)+",
    )
