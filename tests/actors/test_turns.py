"""One stretch of work for each sweep of the loop."""

import asyncio

from actors.turns import Turns

RUNS = 50


def test_no_two_stretches_share_a_sweep_of_the_loop_and_they_keep_their_order() -> None:
    async def scenario() -> list[tuple[int, int]]:
        loop = asyncio.get_running_loop()
        sweep = 0
        stretches: list[tuple[int, int]] = []
        turns = Turns()

        def count() -> None:
            nonlocal sweep
            sweep += 1
            if len(stretches) < RUNS:
                loop.call_soon(count)

        async def run(number: int) -> None:
            await turns.take(0, number)
            stretches.append((sweep, number))

        count()
        async with asyncio.timeout(10):
            await asyncio.gather(*(run(number) for number in range(RUNS)))
        return stretches

    stretches = asyncio.run(scenario())
    assert [number for _, number in stretches] == list(range(RUNS))
    assert len({sweep for sweep, _ in stretches}) == RUNS


def test_who_asked_a_model_least_goes_first_and_of_these_the_first_that_came() -> None:
    async def scenario() -> list[tuple[int, int]]:
        turns = Turns()
        done: list[tuple[int, int]] = []

        async def run(asked: int, rank: int) -> None:
            await turns.take(asked, rank)
            done.append((asked, rank))

        places = [(0, 9), (2, 0), (1, 3), (1, 1), (0, 4), (1, 1)]
        async with asyncio.timeout(10):
            await asyncio.gather(*(run(*place) for place in places))
        return done

    first, *rest = asyncio.run(scenario())
    assert first == (0, 9)  # nobody waited when it came
    assert rest == sorted(rest)


def test_one_that_was_cancelled_while_it_waited_keeps_nobody_waiting() -> None:
    async def scenario() -> list[int]:
        turns = Turns()
        done: list[int] = []

        async def run(number: int) -> None:
            await turns.take(0, number)
            done.append(number)

        tasks = [asyncio.create_task(run(number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
            await run(9)
        return done

    assert asyncio.run(scenario()) == [0, 2, 3, 9]
