"""Which names are steps: those of frameworks, or those that a job's own pattern says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.errors import ConfigError
from fuse_tier.stepnames import check_pattern, newest_step, step_in


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (b"100", 100),
        (b"0", 0),
        (b"step_100", 100),
        (b"checkpoint-500", 500),
        (b"global_step1000", 1000),
        (b"iter_0000100", 100),
        (b"step_7.safetensors", 7),
        (b"epoch=3-step=100.ckpt", 100),
        (b"epoch=3-step=100-v1.ckpt", 100),
        (b"epoch=03-step=100", 100),
        (b"llama-s30-n2-w0.save", 30),
        (b"100.orbax-checkpoint-tmp-1700", None),
        (b"step_100.tmp", None),
        (b"epoch=3-step=100.ckpt.tmp", None),
        (b"last.ckpt", None),
        (b"latest", None),
        (b"step_", None),
        (b"\xff100", None),
    ],
)
def test_steps_are_recognised_by_the_names_that_frameworks_give(name: bytes, step: int | None) -> None:
    assert step_in(name) == step


def test_the_newest_step_counts_by_number_not_by_name() -> None:
    assert newest_step([b"900", b"1000", b"notes.txt"]) == 1000


@pytest.mark.parametrize(
    ("pattern", "name", "step"),
    [
        ("model-{step}.pt", b"model-100.pt", 100),
        ("model-{step}.pt", b"model-100xpt", None),  # a point is itself
        ("model-{step}.pt", b"model-100.pt.tmp", None),
        ("model-{step}.pt", b"100", None),  # what frameworks call theirs is none then
        ("*-{step}", b"run7-100", 100),
        ("*{step}", b"model100", 100),
        ("{step}-of-*", b"7-of-16", 7),
        ("(a+)+{step}$", b"(a+)+7$", 7),
        ("[{step}]", b"[7]", 7),
        ("w\\{step}", b"w\\7", 7),
    ],
)
def test_a_pattern_of_the_job_says_which_names_are_steps_and_no_others_are(
    pattern: str, name: bytes, step: int | None
) -> None:
    check_pattern(pattern)
    assert step_in(name, pattern) == step


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("model-*.pt", r"has \{step\} 0 times, and not once"),
        ("{step}-{step}", r"has \{step\} 2 times, and not once"),
        ("saves/{step}", "has a '/': only names at the root of the volume count"),
        ("*a*b*{step}", r"has 3 times '\*', and not at most 2 times"),
        ("m\x00{step}", "printable ASCII"),
        ("modèle-{step}", "printable ASCII"),
        ("m" * 250 + "{step}", "has 256 characters"),
    ],
)
def test_a_bad_pattern_is_refused_with_what_is_wrong_and_how_one_looks(pattern: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"{told}.*: write the name of a step .* such as model-\{{step\}}\.pt"):
        check_pattern(pattern)


@given(
    st.lists(st.sampled_from(["*", "a", "0", "-", ".", "(", "+", "{"]), max_size=12).map("".join),
    st.lists(st.sampled_from(["*", "a", "0", "-", ".", ")", "$", "}"]), max_size=12).map("".join),
    st.integers(0, 10**18 - 1),
)
def test_whatever_is_no_pattern_is_refused_and_what_is_finds_its_own_number(
    before: str, after: str, step: int
) -> None:
    pattern = f"{before}{{step}}{after}"
    try:
        check_pattern(pattern)
    except ConfigError:
        assert pattern.count("*") > 2
        return
    name = pattern.replace("*", "").replace("{step}", f"<{step}>").replace("<", "").replace(">", "").encode()
    found = step_in(name, pattern)
    assert found is not None
    if "0" not in pattern:  # else a digit beside the number counts as one of its own
        assert found == step


def test_the_longest_name_is_judged_by_the_worst_pattern() -> None:
    assert step_in(b"a" * 254 + b"7", "*a*{step}") == 7
    assert step_in(b"a1" * 127, "*a*{step}b") is None
