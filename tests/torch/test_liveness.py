"""A step holds the values that are still needed, and no others."""

from dataclasses import replace

from mistral_portable_torch.launches import launches
from torch_memory import Held
from torch_sessions import CONFIG, Session, text

from mistral_portable.graph import build
from mistral_portable.graph.liveness import last_uses
from mistral_portable.graph.passes import expose_hidden_states


def most_bytes(layers: int) -> int:
    session = Session(replace(CONFIG, num_hidden_layers=layers), max_chunk=48)
    lane, _ = session.begin(text(48))  # pools have grown
    session.manager.rollback(lane, 0)
    with Held() as held:
        session.feed(lane, text(48))
    return int(held.most)


def test_memory_of_a_step_does_not_depend_on_the_number_of_layers() -> None:
    few, many = most_bytes(2), most_bytes(9)
    assert few > 0
    assert many <= few + 48 * CONFIG.hidden_size * 4


def test_outputs_and_what_is_read_later_are_kept() -> None:
    graph = expose_hidden_states(build(CONFIG))
    alive: set[str] = set()
    dying = last_uses(graph, launches(graph))
    for launch in launches(graph):
        assert alive >= {name for name in launch.inputs if name not in (*graph.parameters, *graph.inputs)}
        alive |= set(launch.results)
        alive -= set(dying[launch.name])
    assert alive == set(graph.outputs.values())
