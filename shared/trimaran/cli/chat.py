"""`trimaran chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from trimaran.cli import options
from trimaran.cli.api_client import ApiClient, Delta
from trimaran.cli.serve import own_server
from trimaran.cli.server import server_url
from trimaran.config import Config
from trimaran.errors import ConfigError, PeerError, RequestError

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) ends, Ctrl-C stops an answer."


def chat(
    question: Annotated[list[str] | None, typer.Argument(help="Ask this, print the answer, and end.")] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="A running server; without it, the configured address.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", envvar="TRIMARAN_API_KEY", help="API key, if the server asks for one."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="System message of the conversation.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")
    ] = None,
    model: options.Model = None,
    config_file: options.ConfigFile = None,
    host: options.Host = None,
    port: options.Port = None,
    device: options.Device = None,
    assignments: options.Assignments = None,
    debug: options.Debug = False,
) -> None:
    """Chat with a running server, or with one that is started for it and stopped afterwards.

    Reasoning is shown dimmed. Without a terminal, one question is read from standard input.

    Examples:

      trimaran chat
      trimaran chat --url http://gpu-box:8000 --system "Answer in French."
      trimaran chat "What is 12 + 30?"
      echo "Count from 3 to 9." | trimaran chat
    """
    config = options.make_config(
        config_file, assignments, model=model, host=host, port=port, device=device, debug=debug
    )
    parameters: dict[str, object] = {"max_tokens": max_tokens, "temperature": temperature}
    given = {name: value for name, value in parameters.items() if value is not None}
    with _server(config, url, key) as api:
        conversation = Conversation(api, system, given)
        if question:
            conversation.answer_once(" ".join(question))
        elif sys.stdin.isatty():
            conversation.run()
        else:
            conversation.answer_once(sys.stdin.read())


class Conversation:
    """Messages so far, and the terminal that they are typed and shown in."""

    def __init__(self, api: ApiClient, system: str | None, parameters: dict[str, object]) -> None:
        self._api = api
        self._first = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._first)
        self._parameters = {"model": api.model(), **parameters}
        self._console = Console(highlight=False)
        self._was_reasoning = False

    def answer_once(self, question: str) -> None:
        """Asks one question and prints the answer alone.

        Raises:
            ConfigError: the question is empty.
            RequestError: the server refuses it.
        """
        if not question.strip():
            raise ConfigError(
                "the question is empty", remedy="give it after `trimaran chat`, or on standard input"
            )
        for delta in self._stream(question.strip()):
            if self._console.is_terminal or not delta.reasoning:
                self._show(delta)
        self._console.print()

    def run(self) -> None:
        """Reads questions until the end of input or `/quit`."""
        _enable_line_editing()
        self._console.print(Text(f"{self._parameters['model']} at {self._api.url}. {HELP}", style="dim"))
        while (line := _read_line()) is not None:
            match line.strip():
                case "":
                    continue
                case "/quit" | "/exit":
                    return
                case "/reset":
                    self._messages = list(self._first)
                    self._console.print(Text("forgotten", style="dim"))
                case "/help" | "/?":
                    self._console.print(Text(HELP, style="dim"))
                case question:
                    self._turn(question)

    def _turn(self, question: str) -> None:
        """One question and its answer; an interrupted or failed one is taken back."""
        before = list(self._messages)
        try:
            for delta in self._stream(question):
                self._show(delta)
            self._console.print()
        except KeyboardInterrupt:
            self._messages = before
            self._console.print(Text("\nstopped; this question is forgotten", style="dim"))
        except (PeerError, RequestError) as error:
            self._messages = before
            self._console.print(Text(f"\n{error}", style="red"))

    def _stream(self, question: str) -> Iterator[Delta]:
        self._messages.append({"role": "user", "content": question})
        answer = []
        for delta in self._api.chat(self._messages, **self._parameters):
            if not delta.reasoning:
                answer.append(delta.text)
            yield delta
        self._messages.append({"role": "assistant", "content": "".join(answer)})

    def _show(self, delta: Delta) -> None:
        if self._was_reasoning and not delta.reasoning:
            self._console.print()
        self._was_reasoning = delta.reasoning
        self._console.print(Text(delta.text, style="dim" if delta.reasoning else ""), end="", soft_wrap=True)


@contextlib.contextmanager
def _server(config: Config, url: str | None, key: str | None) -> Iterator[ApiClient]:
    """A client of the server at `url`, or at the configured address, or of a new one."""
    address = url or server_url(config.gateway.host, config.gateway.port or 8000)
    api = ApiClient(address, key)
    health = api.health()
    if health is not None and not health.answers:
        raise PeerError(f"the server at {api.url} is not ready: {health.state} {health.detail}".rstrip())
    if health is not None:
        yield api
        return
    if url is not None:
        raise PeerError(f"no server answers at {api.url}", remedy="start one with `trimaran serve`")
    with own_server(config) as server:
        yield server.api


def _read_line() -> str | None:
    """A line of input, or None at its end. Ctrl-C at the prompt drops what was typed."""
    while True:
        try:
            return input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()


def _enable_line_editing() -> None:
    """Arrow keys and history, where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415
