"""Invariants at all times, and in the end."""

from serving.handlers.pipeline import Pipeline
from serving.http2.streams import Stream
from serving.transports.loop import LoopPhase
from serving.transports.peer import State
from tests.simulation.clients import PARTS, SLOW, STREAM, Polite, has_finished
from tests.simulation.network import READ, WRITE

_LATE_S = 0.35
"""How late calls that wait may be noticed: they are looked at each 0.1 s, with a tick of 10 ms."""


# After each turn


def check(simulation):
    """Check the server's counts, bounds and windows."""
    loop, limits = simulation.loop, simulation.limits
    own_s = simulation.now_s - simulation.turn_s - simulation.busy_s
    simulation.require(own_s < 0.05, f"a turn took {own_s:g} s beside its runs")
    home, web = loop._ports
    if loop.phase > LoopPhase.SERVING:
        simulation.refusing_s = min(simulation.refusing_s, simulation.now_s)
    changed = [each for each in home._peers if each.socket.link.is_changed]
    if not changed and simulation.random.random() > 0.1:
        return
    entries = [each.entry for each in simulation.router.served]
    simulation.batchers |= dict.fromkeys(entries)
    for batcher in simulation.batchers:
        is_known = batcher in entries or not batcher.is_busy
        simulation.require(is_known, "a version is dropped that has calls to run")
        for queue in batcher._queues:
            check_queue(simulation, queue)
    calls, budget = loop.calls, loop.calls.budget
    simulation.require(budget._num_held == sum(budget._held.values()), "bytes held are miscounted")
    running = sum(size for call, size in budget._held.items() if call.is_running)
    simulation.require(
        budget._num_held <= running + limits.max_buffered_bytes, "too many bytes are held"
    )
    simulation.require(not any(each.is_over for each in budget._held), "an ended call holds bytes")
    simulation.require(
        not any(each.is_over for each in calls.stalled), "an ended call waits for room"
    )
    simulation.require(len(calls._deadlines) <= calls._max_deadlines, "too many deadlines")
    simulation.require(len(home._peers) <= limits.max_connections, "too many connections")
    slow_s = limits.message_s + 2.1 + simulation.patience_s  # it is looked at each 1 to 2 s
    for connection in [*home._peers, *web._peers]:
        is_stuck = (
            connection.output
            and simulation.now_s - max(connection.active_s, simulation.thawed_s) > slow_s
        )
        simulation.require(not is_stuck, "a peer that takes no answers is kept")
    for connection in changed:
        link = connection.socket.link
        link.is_changed = False
        check_connection(simulation, connection)
        if isinstance(link.client, Polite) and not link.client.is_over:
            check_windows(simulation, connection, link.client)


def check_queue(simulation, queue):
    waiting = [group for line in queue._ring for group in line.groups]
    num_rows = sum(group.num_rows for group in waiting)
    simulation.require(queue.num_rows == num_rows, f"{num_rows} rows wait, not {queue.num_rows}")
    by_address = sum(queue._addresses.values())
    simulation.require(by_address == num_rows, f"{num_rows} rows wait, not {by_address} by address")
    most = 2 * queue.capacity + simulation.batching.max_request_rows + 512
    simulation.require(num_rows <= most, f"{num_rows} rows wait, of {queue.capacity}")


def check_connection(simulation, connection):
    http2, limits = connection.engine, simulation.limits
    streams = http2.streams
    simulation.require(len(streams) <= limits.http2.max_streams, "too many streams")
    simulation.require(
        http2.blocked.keys() <= streams.keys(), "a stream that is over waits to be sent"
    )
    for state in streams.values():
        if isinstance(state, Stream):
            window = state.receive_window + state.owed
            simulation.require(
                window <= limits.http2.stream_window_bytes, f"a stream's window is {window}"
            )
    unsent = http2.num_unsent()
    most = limits.max_unread_bytes + limits.http2.max_streams * (512 * 100 + 2_000)
    simulation.require(unsent <= most, f"{unsent} bytes wait for a peer")


def check_windows(simulation, connection, client):
    """Compare the windows of both sides, while nothing is on its way."""
    link, ours, theirs = client.link, client.engine, connection.engine
    if client.out or not (link.up.is_quiet and link.down.is_quiet) or link.up.is_shut:
        return
    if connection.state >= State.LAST:  # it drops what still comes, uncounted
        return
    if connection.output or theirs._ready or ours._ready:
        return
    pairs = [("up", ours.send_window, theirs._receive_window),
             ("down", theirs.send_window, ours._receive_window)]  # fmt: skip
    for stream, state in ours.streams.items():
        their = theirs.streams.get(stream)
        if isinstance(their, Stream) and isinstance(state, Stream):
            if not has_finished(state):
                sent = ours._first_window + state.send_credit
                pairs.append(("of a stream up", sent, their.receive_window))
            sent = theirs._first_window + their.send_credit
            pairs.append(("of a stream down", sent, state.receive_window))
    for which, sender, receiver in pairs:
        if sender != receiver:
            simulation.fail(
                f"client {client.number}: window {which}: {sender} here, {receiver} there"
            )


def check_batcher(simulation, batcher, end_s):
    """Check that a version leaves nobody waiting who could go on, or whose time is over."""
    if isinstance(batcher, Pipeline):
        runners = batcher._runners
        free = [each for each in runners.slots if each.num_steps < runners._most_steps]
        if not runners._is_async:  # parts that are asked for ahead come first
            free = [each for each in free if not each.jobs]
        is_free = batcher._has_room and not all(runners._is_kept_free(each, free) for each in free)
        is_idle = any(not each.jobs for each in runners.slots)
        has_suspect = any(each.has_suspect for each in runners.slots)
        has_suspects = runners.suspects and is_idle and not has_suspect
        has_work = batcher._queue.num_rows or runners.ready or has_suspects
        is_due = batcher._is_scheduled or not (is_free and has_work)
        simulation.require(is_due, "calls wait while a handler's process is free")
        if batcher._network is not None:
            check_batcher(simulation, batcher._network, end_s)
    else:
        offloaded = batcher._offloaded
        # More if calls that were drawn to run once more wait for a runner, too.
        is_full = len(offloaded.running) >= offloaded._num_runners
        is_due = batcher._is_scheduled or is_full or not offloaded.num_waiting
        simulation.require(is_due, "calls wait while a runner is free")
    for queue in batcher._queues:
        for line in queue._ring:
            for group in line.groups:
                late_s = end_s - max(group.deadline_s, group.arrived_s)
                simulation.require(
                    late_s < _LATE_S + simulation.patience_s or group.open_calls() is None,
                    f"calls wait {late_s:g} s past their deadline",
                )


def check_sleep(simulation, end_s):
    """Check that the loop does not sleep while there is something to do."""
    loop = simulation.loop
    simulation.require(not loop._posted, "the loop sleeps while something is posted")
    simulation.require(not loop._dirty, "the loop sleeps while something is to be written")
    for each in simulation.router.served:
        check_batcher(simulation, each.entry, end_s)
    home = loop._ports[0]
    for deadline_s, _, call in loop.calls._deadlines[:1]:
        late_s = end_s - max(deadline_s, simulation.now_s)
        is_late = late_s > 0.05 and not call.is_over
        simulation.require(not is_late, f"the loop sleeps {late_s:g} s past a call's deadline")
    for connection in home._peers:
        events = loop.selector.keys[connection.socket].events
        simulation.require(
            events == (WRITE if connection.output else READ), "a socket is not watched"
        )
        http2 = connection.engine
        is_sent = connection.output or not (http2._ready and http2.is_established)
        simulation.require(is_sent, "the loop sleeps while there are answers to send")


# Each call


def check_run(simulation, client, call, since_s):
    """Check that somebody wants the answer; `since_s` is when the run was decided."""
    reason = reason_against(simulation, client, call, since_s)
    simulation.require(reason is None, f"call {call.number} is run, {reason}")


def reason_against(simulation, client, call, since_s):
    """Return why nobody wants the answer to a call; None if somebody does."""
    up = client.link.up
    arrived_s = None if call.end is None else up.read_s(call.end)
    if arrived_s is not None and call.path != STREAM:
        late_s = since_s - arrived_s - call.timeout_s
        if late_s > 0:
            return f"{late_s:g} s after its deadline"
        began_s = up.read_s(call.begun or 0)
        if began_s is not None and began_s > simulation.refusing_s:
            return "but came while it drained"
    left_s = None if call.left is None else up.read_s(call.left)
    if left_s is not None and left_s < since_s:
        return "but was reset"
    closed_s = client.link.closed_s
    if closed_s is not None and closed_s < since_s:
        return "its caller has left"
    return None


def judge_answer(simulation, call):
    """Check that an answer is right, and of a version that was served meanwhile."""
    from tests.simulation.simulation import rows_of

    number = len(call.answers)
    if call.path == PARTS:
        simulation.handled.judge_part(call)
        return
    if number > len(call.messages):
        simulation.fail(f"call {call.number} has an answer too many")
        return
    rows, version = call.answers[-1]
    if call.path == SLOW:
        return
    is_first = call.model == "digits"
    is_served = version in (simulation.served_since(call.sent_s, call.label) if is_first else "1")
    simulation.require(is_served, f"call {call.number} is answered by version {version!r}")
    images = call.messages[number - 1]
    is_right = rows == [row.tobytes() for row in rows_of(images, version or "0")]
    simulation.require(is_right, f"call {call.number} has a wrong answer")
    simulation.require(not (call.is_poison and any(image[8] == 0xFF for image in images)),
                  f"call {call.number} is answered though its run fails")  # fmt: skip


def find(state, label):
    """Return the version for a label."""
    if state is None:
        return None
    return state.labels.get(label, label) if label else state.default_version


def judge(simulation, client, call):
    """Check that a call has ended as it may."""
    now_s, name = simulation.now_s, f"call {call.number}"
    served = simulation.states_since(call.sent_s)
    is_excused = simulation.handled is not None and simulation.handled.excuses(call)
    if is_excused and (call.outcome in ("3", "4", "13", "14") or call.reason):
        return
    if call.reason:
        is_late = now_s >= call.sent_s + call.timeout_s
        simulation.require(call.is_poison or is_late, f"{name} ends with {call.reason}")
        return
    is_lost = client.link.is_reset or client.link.is_gone
    if call.outcome == "0":
        number = len(call.messages) if call.path != PARTS else simulation.handled.num_parts(call)
        is_whole = len(call.answers) == number and not call.data
        simulation.require(is_whole, f"{name} has {len(call.answers)} answers of {number}")
    elif call.outcome == "4":
        is_late = now_s >= call.sent_s + call.timeout_s
        is_slow = call.end is None or now_s - call.sent_s > simulation.limits.message_s
        simulation.require(is_late or is_slow, f"{name} is said to be late, but is not")
    elif call.outcome == "5":
        gone = [each for each in served if each is None or call.label not in
                ("", "stable", *each.versions)]  # fmt: skip
        simulation.require(gone, f"{name} finds no model, but there is one")
    elif call.outcome == "13":
        failed = simulation.has_failed_since(call.sent_s)
        simulation.require(call.is_poison or failed, f"{name} fails, but its model does not")
    elif call.outcome == "14":
        is_draining = now_s > simulation.draining_s
        simulation.require(is_draining or len(served) > 1, f"{name} is refused without a reason")
    elif call.outcome == "closed":
        arrived_s = None if call.end is None else client.link.up.read_s(call.end)
        is_stopped = now_s > simulation.drained_s and (arrived_s or now_s) > simulation.draining_s
        is_stuck = client.has_paused or client.is_slow_reader
        simulation.require(is_lost or is_stopped or is_stuck, f"{name} loses its connection")
    elif call.outcome.startswith("reset") and call.outcome != "reset REFUSED_STREAM":
        simulation.fail(f"{name} ends with {call.outcome}")
    elif call.outcome not in ("8", "cancelled", "unread", "reset REFUSED_STREAM"):
        simulation.fail(f"{name} ends with status {call.outcome}")


# In the end


def check_answered(simulation, client):
    """Check that each call of a client that is still there was answered."""
    if not (client.is_over or client.link.is_reset or client.link.is_gone):
        for call in client.calls.values():
            if call.is_ended:
                simulation.fail(f"call {call.number} of client {client.number} was never answered")


def check_start(simulation):
    """Check that the server is as at the start, now that all have left."""
    home, web = simulation.loop._ports
    left = [connection.address for connection in [*home._peers, *web._peers]]
    simulation.require(not left, f"connections are left: {left}")
    simulation.require(
        simulation.num_sockets == 2, f"{simulation.num_sockets - 2} sockets are left"
    )
    simulation.require(
        len(simulation.loop.selector.keys) == 3, "the selector has sockets that are gone"
    )
    batchers = [each.entry for each in simulation.router.served]
    number = sum(
        each is not None for each in (simulation, simulation.neighbour, simulation.handled)
    )
    simulation.require(len(batchers) == number, f"{len(batchers)} batchers are left")
    simulation.require(not any(each.is_busy for each in batchers), "calls wait, of nobody")
    is_open = any(isinstance(each, Pipeline) and each._open for each in batchers)
    simulation.require(not is_open, "calls are in a stage, of nobody")
    simulation.require(not simulation.loop._due, "the loop wakes up for a queue that is empty")
    calls, budget = simulation.loop.calls, simulation.loop.calls.budget
    simulation.require(not (budget._held or calls.stalled), "bytes or turns are held, by nobody")


def check_counts(simulation):
    """Check that no call was counted twice; attackers' calls are not known exactly."""
    counts = simulation.router.metrics.snapshot().requests
    total, most = sum(counts.values()), sum(each.engine._next // 2 for each in simulation.clients)
    simulation.require(total <= most, f"{total} outcomes of {most} calls")
    answered = sum(number for (_, status), number in counts.items() if status == "OK")
    seen = sum(call.outcome == "0" for call in {call for _, call in simulation.calls.values()})
    simulation.require(seen <= answered, f"{seen} calls were answered, and {answered} counted")


def check_probe(simulation, calls):
    found = [call and call.outcome for call in calls]
    simulation.require(all(each == "0" for each in found), f"a new caller gets {found}")


def check_drained(simulation):
    """Check that a drain ends in its time, with an answer for each call that had come before."""
    took_s = simulation.drained_s - simulation.draining_s
    most_s = 15 + simulation.patience_s + 4 * simulation.run_s * (10 + simulation.num_to_answer)
    simulation.require(took_s < most_s, f"the drain took {took_s:g} s")


def check_parted(simulation):
    """Check that nobody who keeps to the protocol may have lost an answer at the end."""
    for client in simulation.clients:
        link = client.link
        if isinstance(client, Polite) and (link.closed_s or 0.0) > simulation.drained_s:
            simulation.require(
                not link.is_torn, f"client {client.number} is cut off while it sends"
            )
