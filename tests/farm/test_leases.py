"""Leases of one machine: who has a board, who is next, and what ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.errors import FarmError, LeaseHeld, LeaseLost
from deploy.farm import file as farm_file
from deploy.farm import queue as farm_queue
from deploy.farm.lease import Lease
from deploy.farm.leases import PERIOD_S, PRESENCE_S, Leases, Standing, default_owner
from deploy.farm.process import is_gone, this_process
from tests.conftest import ROOT, require_or_skip
from tests.farm.clock import TestClock

Open = Callable[..., Leases]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "farm" / "farm.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    """``opened()``: the leases as another process sees them, through a connection of its own."""
    made: list[Leases] = []

    def make(clock: TestClock | None = None) -> Leases:
        made.append(Leases(path, clock))
        return made[-1]

    yield make
    for leases in made:
        leases.close()


def waiter(leases: Leases, board: str | list[str], owner: str, got: list[str], **how: int) -> threading.Thread:
    """Somebody who waits, says in `got` when they have the board, and gives it back; waits already on return."""

    def wait() -> None:
        with leases.take(board, owner=owner, **how) as lease:
            got.append(f"{owner} {lease.board}")

    before = len(leases.queue())
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while len(leases.queue()) == before and time.monotonic() < end:
        time.sleep(0.005)
    return thread


def test_a_board_is_one_owners_at_a_time_and_the_message_says_whose(opened: Open) -> None:
    with opened().take("pi", owner="anna", purpose="measure kws"):
        with pytest.raises(LeaseHeld) as caught:
            opened().take("pi", owner="ben", wait=0)
        assert "board 'pi' is held by anna (measure kws)" == str(caught.value)
        assert "orin" == opened().take("orin", owner="ben", wait=0).board

    assert "pi" == opened().take("pi", owner="ben", wait=0).board


def test_an_owners_own_uses_exclude_each_other_too(opened: Open) -> None:
    with opened().take("pi", owner="anna"), pytest.raises(LeaseHeld):
        opened().take("pi", owner="anna", wait=0)


def test_each_lease_of_a_board_has_a_higher_token_than_all_before_it(opened: Open) -> None:
    tokens = []
    for _ in range(3):
        with opened().take("pi") as lease:
            tokens.append(lease.token)

    assert [1, 2, 3] == tokens
    assert 1 == opened().take("orin").token


def test_giving_back_twice_or_late_disturbs_nobody(opened: Open) -> None:
    first = opened().take("pi", owner="anna")
    first.release()
    second = opened().take("pi", owner="ben")

    first.release()

    assert ["ben"] == [holder.owner for holder in opened().show()]
    second.check()


def test_of_several_boards_the_first_that_is_free_is_taken(opened: Open) -> None:
    leases = opened()

    taken = [leases.take(["pi4", "pi5", "orin"], wait=0).board for _ in range(3)]

    assert ["pi4", "pi5", "orin"] == taken
    with pytest.raises(LeaseHeld, match=r"board 'orin' is held by .*; board 'pi4' is held by .*; board 'pi5' is"):
        leases.take(["pi4", "pi5", "orin"], wait=0)


# Ends


def test_a_lease_that_nobody_renews_ends_and_its_holder_is_told_before_it_does_anything(opened: Open) -> None:
    clock = TestClock()
    lease = opened(clock).take("pi", owner="anna", for_s=30, kept=True)
    clock.s += 29.9
    lease.check()

    clock.s += 0.2

    with pytest.raises(LeaseLost, match=r"the lease of board 'pi' has ended \(token 1;"):
        lease.check()
    with pytest.raises(LeaseLost):
        lease.renew()
    assert 2 == opened(clock).take("pi", owner="ben", wait=0).token


@pytest.mark.parametrize("jump_s", [-1e9, -3600, 3600, 1e9])
def test_a_wall_clock_that_jumps_neither_frees_a_board_nor_keeps_it(opened: Open, jump_s: float) -> None:
    clock = TestClock()
    lease = opened(clock).take("pi", owner="anna", for_s=30, kept=True)

    clock.wall += jump_s

    lease.check()
    with pytest.raises(LeaseHeld):
        opened(clock).take("pi", owner="ben", wait=0)
    clock.s += 31
    opened(clock).take("pi", owner="ben", wait=0)


def test_what_was_held_before_a_reboot_is_free_however_the_clocks_stand(opened: Open) -> None:
    """The clock begins anew: what the file says may be far in its future."""
    clock = TestClock()
    opened(clock).take("pi", owner="anna", for_s=3600, kept=True)

    clock.s, clock.boot_id = 5.0, "second"

    assert [] == opened(clock).show()
    assert 2 == opened(clock).take("pi", owner="ben", wait=0).token


def test_a_lease_is_renewed_as_long_as_its_process_lives(opened: Open) -> None:
    with opened().take("pi", for_s=1.5) as lease:
        first = lease.expires
        end = time.monotonic() + 30
        while lease.expires < first + 600_000_000 and time.monotonic() < end:
            lease.check()
            time.sleep(0.02)

        assert lease.expires >= first + 600_000_000
        with pytest.raises(LeaseHeld):
            opened().take("pi", wait=0)


def holder(path: Path, for_s: float) -> subprocess.Popen[str]:
    """A process that has the board `pi`."""
    program = (
        "import sys, time; from pathlib import Path; from deploy.farm.leases import Leases;"
        "lease = Leases(Path(sys.argv[1])).take('pi', owner='anna', for_s=float(sys.argv[2]));"
        "print(lease.token, flush=True); input(); lease.check()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(for_s)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and "1\n" == process.stdout.readline()
    return process


def test_a_killed_process_holds_nothing(path: Path, opened: Open) -> None:
    """At once, where its death can be seen: this lease would last another hour."""
    process = holder(path, 3600)
    with pytest.raises(LeaseHeld):
        opened().take("pi", owner="ben", wait=0)

    process.kill()
    process.wait()

    assert 2 == opened().take("pi", owner="ben", wait=0).token


def test_a_killed_process_that_cannot_be_seen_holds_a_board_for_one_period_at_most(path: Path, opened: Open) -> None:
    """As one of another container, whose processes have numbers of their own."""
    clock = TestClock()
    leases = opened(clock)
    lease = leases.take("pi", owner="anna", kept=True, for_s=PERIOD_S)
    with leases.file.writing() as db:
        db.execute("UPDATE leases SET kept = 0, process = '1 1 pid:[1]'")
    with pytest.raises(LeaseHeld):
        opened(clock).take("pi", owner="ben", wait=PERIOD_S - 1)

    opened(clock).take("pi", owner="ben", wait=2)

    assert clock.now_ns() < lease.expires + 1e9


def test_a_process_that_was_stopped_for_too_long_finds_out_when_it_goes_on(path: Path, opened: Open) -> None:
    process = holder(path, 1)
    process.send_signal(signal.SIGSTOP)

    with opened().take("pi", owner="ben", wait=20) as lease:
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate("\n", timeout=20)

        assert 2 == lease.token
    assert "LeaseLost: the lease of board 'pi' has ended (token 1;" in said


def test_a_process_is_known_by_its_birth_as_numbers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = this_process()
    assert ours and not is_gone(ours)
    pid, born, namespace = ours.split(" ", 2)

    assert is_gone(f"{pid} {int(born) - 1} {namespace}")
    assert not is_gone(f"{pid} {int(born) - 1} pid:[1]")
    assert not is_gone(None)


# The queue


def test_whoever_waits_gets_the_board_when_it_is_given_back_and_is_told_where_they_stand(opened: Open) -> None:
    told: list[Standing] = []
    lease = opened().take("pi", owner="anna", purpose="measure")

    def give_back(standing: Standing) -> None:
        told.append(standing)
        lease.release()

    with opened().take("pi", owner="ben", on_wait=give_back) as got:
        assert 2 == got.token

    assert "place 1 in the queue for pi; pi is held by anna (measure)" == str(told[0])
    assert [] == opened().queue()


def test_owners_take_turns_however_much_one_of_them_wants(opened: Open) -> None:
    got: list[str] = []
    leases = opened()
    lease = leases.take("pi", owner="chief")
    threads = [waiter(leases, "pi", owner, got) for owner in ("anna", "anna", "anna", "ben", "cleo")]
    assert [1, 2, 3, 4, 5] == [entry.place for entry in leases.queue("pi")]

    lease.release()
    for thread in threads:
        thread.join(20)

    assert ["anna pi", "ben pi", "cleo pi", "anna pi", "anna pi"] == got


def test_a_higher_priority_goes_first_and_within_one_who_came_first(opened: Open) -> None:
    got: list[str] = []
    leases = opened()
    lease = leases.take("pi", owner="chief")
    asked = (("anna", 0), ("ben", 5), ("cleo", 0), ("dora", 5))
    threads = [waiter(leases, "pi", owner, got, priority=priority) for owner, priority in asked]

    lease.release()
    for thread in threads:
        thread.join(20)

    assert ["ben pi", "dora pi", "anna pi", "cleo pi"] == got


def test_nobody_who_comes_later_goes_past_a_queue(opened: Open) -> None:
    """The board is free for a moment; whoever is next has not looked yet."""
    clock = TestClock()
    leases = opened(clock)
    leases.take("pi", owner="anna", for_s=10, kept=True)
    with leases.file.writing() as db:
        db.execute(
            "INSERT INTO queue VALUES (NULL, '[\"pi\"]', 0, 'ben', '', 0, 2, 0, ?, ?, NULL)",
            (int((clock.s + 100) * 1e9), clock.boot()),
        )
    clock.s += 11

    with pytest.raises(LeaseHeld, match=r"^others wait for board 'pi'$"):
        opened(clock).take("pi", owner="cleo", wait=0)
    opened(clock).take("pi", owner="cleo", wait=0, priority=1)


def test_whoever_stopped_waiting_without_a_word_holds_up_the_queue_only_for_a_moment(opened: Open) -> None:
    clock = TestClock()
    leases = opened(clock)
    leases.take("pi", owner="anna", for_s=10, kept=True)
    entry = leases._enqueue(farm_request("pi", "ben"))
    clock.s += PRESENCE_S + 0.1
    assert [] == leases.queue()

    clock.s += 10
    lease = opened(clock).take("pi", owner="cleo", wait=0)

    assert 2 == lease.token
    assert entry != leases._still_here(farm_request("pi", "ben"), entry)  # ben goes on, and is the last


def farm_request(board: str, owner: str) -> farm_queue.Request:
    return farm_queue.Request((board,), owner, "", 0, False, PERIOD_S)


def test_whoever_gives_up_leaves_the_queue_and_says_how_long_they_waited(opened: Open) -> None:
    with opened().take("pi", owner="anna"), pytest.raises(LeaseHeld) as caught:
        opened().take("pi", owner="ben", wait=0.05)

    assert "board 'pi' is held by anna; waited for 1 s" == str(caught.value)
    assert [] == opened().queue()


def test_whoever_waits_for_any_of_several_boards_takes_the_first_that_comes_free(opened: Open) -> None:
    got: list[str] = []
    leases = opened()
    held = {board: leases.take(board, owner="chief") for board in ("pi4", "pi5")}
    threads = [waiter(leases, "pi4", "anna", got), waiter(leases, ["pi4", "pi5"], "ben", got)]
    assert [("pi4",), ("pi4", "pi5")] == [entry.boards for entry in leases.queue()]
    assert [1, 1] == [entry.place for entry in leases.queue()]  # ben is the first who wants pi5

    held["pi5"].release()
    threads[1].join(20)

    assert ["ben pi5"] == got
    held["pi4"].release()
    threads[0].join(20)


# Kept


def test_what_a_person_keeps_lets_their_own_uses_through_one_by_one(opened: Open) -> None:
    opened().take("pi", owner="anna", for_s=60, kept=True, purpose="debugging")

    with opened().take("pi", owner="anna", wait=0) as use:
        assert 2 == use.token
        with pytest.raises(LeaseHeld):
            opened().take("pi", owner="anna", wait=0)
    with pytest.raises(LeaseHeld) as caught:
        opened().take("pi", owner="ben", wait=0)

    assert "board 'pi' is held by anna (debugging), kept for another 60 s" == str(caught.value)
    assert [(True, "anna")] == [(held.kept, held.owner) for held in opened().show()]


def test_others_who_wait_for_the_end_of_it_are_not_before_its_owner(opened: Open) -> None:
    leases = opened()
    leases.take("pi", owner="anna", for_s=60, kept=True)
    thread = waiter(leases, "pi", "ben", [])

    leases.take("pi", owner="anna", wait=0).release()

    leases.release_kept("pi", "anna")
    thread.join(20)


def test_taken_again_it_lasts_anew(opened: Open) -> None:
    clock = TestClock()
    leases = opened(clock)
    leases.take("pi", owner="anna", for_s=60, kept=True)
    clock.s += 50

    leases.take("pi", owner="anna", for_s=60, kept=True, wait=0)

    assert [60.0] == [held.left_s for held in leases.show()]


def test_only_its_owner_gives_back_what_is_kept(opened: Open) -> None:
    leases = opened()
    leases.take("pi", owner="anna", for_s=60, kept=True)

    with pytest.raises(LeaseHeld, match="board 'pi' is not yours to release: it is held by anna, kept for"):
        leases.release_kept("pi", "ben")
    leases.release_kept("pi", "anna")
    with pytest.raises(FarmError, match="nobody keeps board 'pi'"):
        leases.release_kept("pi", "anna")

    leases.take("pi", owner="ben", wait=0)


def test_the_owner_is_who_the_environment_says_or_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "@" in default_owner()

    monkeypatch.setenv("DEPLOY_OWNER", "ci-1234")

    assert "ci-1234" == default_owner()


# Tokens that the file forgot


def test_a_token_is_lifted_above_what_the_board_has_seen(opened: Open) -> None:
    lease = opened().take("pi", owner="anna")

    lease.lift(41)

    assert 42 == lease.token
    lease.renew()
    lease.release()
    assert 43 == opened().take("pi").token


def test_a_lease_that_was_lost_is_not_lifted(opened: Open) -> None:
    clock = TestClock()
    lease = opened(clock).take("pi", owner="anna", for_s=5, kept=True)
    clock.s += 4
    with opened(clock).file.writing() as db:
        db.execute("UPDATE leases SET token = 2")  # somebody else's meanwhile

    with pytest.raises(LeaseLost):
        lease.lift(41)


# The file


def test_many_processes_at_once_make_the_file_and_never_overlap(path: Path) -> None:
    program = (
        "import sys, os, time; from pathlib import Path; from deploy.farm.leases import Leases\n"
        "leases, mark = Leases(Path(sys.argv[1])), sys.argv[2]\n"
        "for _ in range(15):\n"
        "    with leases.take('pi') as lease:\n"
        "        os.close(os.open(mark, os.O_CREAT | os.O_EXCL)); time.sleep(0.002); os.unlink(mark)\n"
    )
    mark = path.parent.parent / "inside"
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(path), str(mark)], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(4)
    ]

    assert [(0, b"")] * 4 == [(process.wait(60), process.stderr.read()) for process in processes if process.stderr]
    assert 61 == Leases(path).take("pi").token


def test_a_file_that_cannot_be_used_says_which_and_why(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    leases = Leases(path)
    leases.take("pi").release()
    leases.close()
    path.write_text("not a database, and longer than the header of one is: " + "x" * 100)

    with pytest.raises(FarmError, match=r"/file/farm\.sqlite: (not a directory|file exists)"):
        Leases(tmp_path / "file" / "farm.sqlite").take("pi")
    with pytest.raises(FarmError) as caught:
        Leases(path).take("pi")

    assert f"{path}: file is not a database" == str(caught.value)
    assert "move it away: boards remember their highest token, and a new file catches up with them" == caught.value.hint


@pytest.mark.parametrize("damaged", [True, False])
def test_a_file_that_the_end_of_the_machine_damaged_is_set_aside_after_the_next_boot(path: Path, damaged: bool) -> None:
    """Nothing here waits for the disk."""
    leases = Leases(path)
    leases.take("pi").release()
    leases.close()
    (path.parent / "farm.boot").write_text("the boot before")
    if damaged:
        data = bytearray(path.read_bytes())
        data[4096:] = os.urandom(len(data) - 4096)
        path.write_bytes(data)

    leases = Leases(path)

    assert (1 if damaged else 2) == leases.take("pi").token
    assert damaged == path.with_name("farm.sqlite.damaged").exists()
    leases.close()


def test_a_file_of_the_future_is_left_alone(path: Path) -> None:
    leases = Leases(path)
    leases.take("pi").release()
    with leases.file.writing() as db:
        db.execute("PRAGMA user_version = 9")
    leases.close()

    with pytest.raises(FarmError, match="is of version 9, this deploy knows 1"):
        Leases(path).take("pi")


def test_a_writer_that_was_stopped_in_the_middle_is_said_and_not_waited_for_without_end(
    path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import sys; from pathlib import Path; from deploy.farm.file import FarmFile\n"
        "with FarmFile(Path(sys.argv[1])).writing(): print('writing', flush=True); input()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(farm_file, "BUSY_S", 0.2)

    with pytest.raises(FarmError) as caught:
        opened().take("pi")

    assert f"{path}: another process has been writing for 0.2 s" == str(caught.value)
    assert f"is one stopped? `fuser -v {path}` shows who has it open" == caught.value.hint
    process.kill()  # and what it was about to write never was
    process.wait()
    opened().take("pi")


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    require_or_skip(
        subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0,
        "needs `unshare -rm`: this kernel or container forbids user namespaces",
    )
    farm = tmp_path / "farm"
    farm.mkdir()
    full = f"mount -t tmpfs -o size=16k none {farm} && exec {sys.executable} -m deploy releases"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", full],
        cwd=tmp_path, env={**os.environ, "DEPLOY_FARM": str(farm), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (1, "") == (done.returncode, done.stdout)
    assert f"error: {farm}/farm.sqlite: the disk is full\nhint:  `$DEPLOY_FARM` names another folder\n" == done.stderr


def test_a_lease_is_given_back_also_when_what_it_was_for_fails(opened: Open) -> None:
    def fail(lease: Lease) -> None:
        with lease:
            raise RuntimeError("what it was for")

    with pytest.raises(RuntimeError, match="what it was for"):
        fail(opened().take("pi"))

    assert [] == opened().show()
