"""A chat request of any dialect, made ready to generate."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from trimaran.wire import SamplingParams

from trimaran_gateway.chat.prompt import ChatPromptRequest, Prompt
from trimaran_gateway.context import Gateway
from trimaran_gateway.generation import GenerationRequest
from trimaran_gateway.output.parser import OutputFormat


@dataclass(frozen=True)
class ChatJob:
    """What a dialect's route fills in; `n` is how many answers it wants."""

    prompt: ChatPromptRequest
    sampling: SamplingParams
    stops: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    one_call: bool = False
    n: int = 1
    priority: int = 0


async def build_prompt(gateway: Gateway, request: ChatPromptRequest, *, to_count: bool = False) -> Prompt:
    """Render and encode; long conversations do so in a thread.

    Args:
        gateway: where.
        request: what is asked for.
        to_count: nothing will be generated, so the prompt may be longer than the context.

    Raises:
        RequestError: the template refuses, the model lacks what the request needs, or the prompt is too long.
    """
    size = sum(len(str(message.get("content"))) for message in request.messages)
    build = gateway.model.prompts.build
    if to_count:
        return await gateway.off_loop(lambda: build(request), size)
    return await gateway.encode_prompt(lambda most: build(request, most), size, "messages")


def with_stop_ids(
    gateway: Gateway, sampling: SamplingParams, own: tuple[int, ...]
) -> tuple[SamplingParams, tuple[int, ...]]:
    """The stop ids of a request, its `own` ones included; `ignore_eos` takes only those.

    For the engine `ignore_eos` means to ignore every stop id, so it is left out where there are others.
    """
    if not sampling.ignore_eos:
        return sampling, tuple(dict.fromkeys((*gateway.model.tokenizer.eog_ids, *own)))
    return msgspec.structs.replace(sampling, ignore_eos=not own), own


async def prepare(gateway: Gateway, job: ChatJob) -> list[GenerationRequest]:
    """One generation request per wanted answer.

    Raises:
        RequestError: as `build_prompt`.
    """
    prompt = await build_prompt(gateway, job.prompt)
    sampling, stop_ids = with_stop_ids(gateway, job.sampling, job.stop_ids)
    output = OutputFormat(
        reasoning=prompt.reasoning,
        tools=bool(job.prompt.tools),
        one_call=job.one_call,
        stops=job.stops,
        stop_ids=stop_ids,
    )
    request = GenerationRequest(prompt, sampling, output, job.priority)
    return gateway.generator.fan_out(request, job.n)
