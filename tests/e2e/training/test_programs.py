from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.training.programs import Program, run_to_the_end, running

# Saves as the examples do, a megabyte at a time.
_SAVER = """
import shutil, sys
from pathlib import Path
directory = Path(sys.argv[1])
step = 0
while step < 1_000_000:
    step += 1
    unfinished = directory / f"step_{step}.tmp"
    unfinished.mkdir()
    with (unfinished / "file").open("wb") as file:
        for _ in range(8):
            file.write(bytes(1 << 20))
    unfinished.rename(directory / f"step_{step}")
    shutil.rmtree(directory / f"step_{step - 1}", ignore_errors=True)
"""


def program(directory: Path, text: str) -> Program:
    script = directory / "program.py"
    script.write_text(text)
    return Program(str(script), prefix="step_", unfinished_suffix=".tmp", remarks="as expected: .*")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


async def durable_at_once() -> None:
    return


def test_names_tell_complete_steps_from_others(place: Path) -> None:
    saves = program(place, "")
    for name in ("step_2", "step_10", "step_12.tmp", "step_x", "other_3", "step_7.old"):
        (place / name).mkdir()
    (place / "step_12.tmp/file").write_bytes(b"abc")
    assert saves.complete(place) == [2, 10]
    assert saves.unfinished(place) == [12]
    assert saves.unfinished_bytes(place) == 3


async def test_a_program_is_killed_while_a_step_is_written_and_the_one_before_was_durable(
    tmp_path: Path, place: Path
) -> None:
    saves = program(tmp_path, _SAVER)
    seen: list[int] = []

    async def make_durable() -> None:
        seen.append(saves.complete(place)[-1])

    async with running(saves, place, tmp_path / "output.txt") as training:
        newest = await training.kill_in_the_middle_of_a_save(make_durable)
    assert saves.complete(place)[-1] == newest
    assert saves.unfinished(place) == [newest + 1]
    assert seen[-1] == newest


async def test_a_program_that_ends_before_it_is_killed_fails_the_test(tmp_path: Path, place: Path) -> None:
    saves = program(tmp_path, "print('that was all')")
    async with running(saves, place, tmp_path / "output.txt") as training:
        with pytest.raises(pytest.fail.Exception, match=r"ended before it was killed:\nthat was all"):
            await training.kill_in_the_middle_of_a_save(durable_at_once)


async def test_a_program_that_fails_is_shown_with_its_words(tmp_path: Path, place: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"(?s)status 1.*ValueError: no good"):
        await run_to_the_end(program(tmp_path, "raise ValueError('no good')"), place, tmp_path / "output.txt")


async def test_what_a_program_complains_of_is_kept_and_its_remarks_are_not(tmp_path: Path, place: Path) -> None:
    text = (
        "import sys; print('start at step 4'); print('end at step 6: sha256 ' + 64 * 'a');"
        "sys.stderr.write('as expected: slow\\nERROR: bad\\n')"
    )
    outcome = await run_to_the_end(program(tmp_path, text), place, tmp_path / "output.txt")
    assert (outcome.start, outcome.digest, outcome.complaints) == (4, 64 * "a", ("ERROR: bad",))
