from tools.bench_sampler import SETTINGS, measure, table


def test_each_way_takes_time() -> None:
    ways = measure({"top_p": 0.9, "logprobs": 2}, vocab=300, rows=3, repeats=2)
    assert len(ways) == 3
    assert all(0 < seconds.min <= seconds.median for seconds in ways)


def test_the_table_has_a_line_for_each_setting() -> None:
    head, _, *lines = table(vocab=50, rows=2, repeats=1).splitlines()
    assert head == "| vocabulary 50 | one row | 2 rows, one thread | 2 rows |"
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in SETTINGS]
