from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trimaran_gateway.engine.prefixes import BLOCK, CAPACITY, SeenPrefixes, block_keys

IDS = st.lists(st.integers(0, 2**31), max_size=4 * BLOCK)


def test_keys_are_of_whole_blocks_and_all_before_them() -> None:
    ids = list(range(3 * BLOCK + 5))
    keys = block_keys(ids)
    assert len(keys) == 3
    assert block_keys(ids[: 2 * BLOCK]) == keys[:2]
    other = block_keys([7, *ids[1:]])
    assert not set(other) & set(keys), "a block is another one behind another beginning"
    assert block_keys(ids[: BLOCK - 1]) == []


@given(IDS, IDS)
def test_a_match_is_the_common_beginning_in_blocks(seen: list[int], asked: list[int]) -> None:
    memory = SeenPrefixes()
    memory.add(block_keys(seen))
    for prompt in (asked, seen + asked, seen[: len(seen) // 2] + asked):
        common = next((i for i, (a, b) in enumerate(zip(seen, prompt, strict=False)) if a != b), None)
        if common is None:
            common = min(len(seen), len(prompt))
        assert memory.match(block_keys(prompt)) == common // BLOCK


def test_the_longest_unused_is_forgotten_and_of_a_chain_the_end() -> None:
    memory = SeenPrefixes(capacity=4)
    old, used, new = ([number] * (2 * BLOCK) for number in range(3))
    for prompt in (old, used):
        memory.add(block_keys(prompt))
    memory.add(block_keys(old))
    memory.add(block_keys(new)[:1])
    assert memory.match(block_keys(used)) == 1
    assert memory.match(block_keys(old)) == 2
    assert len(memory) == 4
    memory.clear()
    assert memory.match(block_keys(old)) == 0


def test_memory_is_bounded_however_many_prompts_come() -> None:
    memory = SeenPrefixes()
    for number in range(3):
        memory.add([index.to_bytes(16) for index in range(number * CAPACITY, (number + 1) * CAPACITY)])
    assert len(memory) == CAPACITY == 65_536


def test_what_is_under_way_counts_until_it_is_settled() -> None:
    memory = SeenPrefixes()
    keys = block_keys([7] * (3 * BLOCK))
    memory.expect(keys)
    memory.expect(keys[:1])
    assert memory.match(keys) == 3
    memory.settle(keys)
    assert memory.match(keys) == 1, "another one is under way"
    memory.settle(keys[:1])
    assert memory.match(keys) == 0
    assert not memory._under_way
