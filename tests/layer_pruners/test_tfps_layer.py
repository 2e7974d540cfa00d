"""T-FPS inside the language model, and the published code's rule at layer 1 from pixels to picks."""

import dataclasses

import pytest
import torch

import prune2drive as p2d
from families_table import BY_NAME
from prune2drive.layer_pruners import TFPSLayer, TFPSReleased

LLAVA = BY_NAME["llava"]
CAMERAS, TOKENS = 3, 36


def released_picks(states, k):
    """The published sampler for one view, step by step; everything in the states' own dtype."""
    unit = torch.nn.functional.normalize(states, p=2, dim=1)
    distance = 1 - unit @ unit.T
    distance.fill_diagonal_(float("inf"))
    selected = []
    for _ in range(k):
        best, place = None, None
        for token in range(len(states)):
            if token in selected:
                continue
            rivals = [distance[s, token].item() for s in selected] or distance[token].tolist()
            if best is None or min(rivals) > best:
                best, place = min(rivals), token
        selected.append(place)
    return selected


class Entering:
    """Hidden states, position ids and rotary angles as they enter each decoder layer."""

    def __init__(self, model):
        self.hidden, self.positions, self.angles = {}, {}, {}
        layers = model.base_model.language_model.layers
        self.handles = [
            layer.register_forward_pre_hook(self._keep(n), with_kwargs=True) for n, layer in enumerate(layers)
        ]

    def _keep(self, number):
        def hook(layer, args, kwargs):
            self.hidden[number] = (args[0] if args else kwargs["hidden_states"]).detach().clone()
            self.positions[number] = kwargs["position_ids"]
            self.angles[number] = kwargs["position_embeddings"][0]

        return hook

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rate", "count"), [(0.29, 10), (0.27, 9)])  # 36 * 0.27 = 9.72 is cut off
@pytest.mark.parametrize("method", [TFPSLayer(compat="released"), "tfps-released"])
def test_released_picks_the_published_tokens_at_layer_1(method, rate, count, dtype):
    model, inputs = LLAVA.model(dtype=dtype), LLAVA.inputs([CAMERAS])
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with torch.no_grad():
        with Entering(model) as full:
            model(**inputs)
        with p2d.prune(model, method, rate) as pruned, Entering(model) as short:
            model(**inputs)

    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    assert len(places) == CAMERAS * TOKENS
    kept = [column for column in range(full.hidden[0].shape[1]) if column not in places.tolist()]
    for camera, cell in enumerate(pruned.record.samples[0].values()):
        mine = places[camera * TOKENS : (camera + 1) * TOKENS]
        want = released_picks(full.hidden[1][0, mine], count)
        assert (cell.before, cell.kept) == (TOKENS, count)
        assert cell.indices == sorted(want)
        kept += mine[want].tolist()

    kept = torch.tensor(sorted(kept))
    assert short.hidden[0].equal(full.hidden[0])
    assert short.hidden[1].equal(full.hidden[1][:, kept])
    for layer in range(1, 4):
        assert short.hidden[layer].shape[1] == len(kept)
        assert short.positions[layer].equal(full.positions[layer][:, kept])
        assert short.angles[layer].equal(full.angles[layer][:, kept])


def test_half_precision_chooses_otherwise():
    """Else the case above would not tell whose dtype was used."""
    model, inputs = LLAVA.model(dtype=torch.bfloat16), LLAVA.inputs([CAMERAS])
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    picks = []
    for method in (TFPSLayer(), TFPSLayer(compat="released")):
        with torch.no_grad(), p2d.prune(model, method, 0.25) as pruned:
            model(**inputs)
        picks.append([cell.indices for cell in pruned.record.samples[0].values()])
    assert picks[0] != picks[1]


def test_a_deeper_layer_sees_its_own_states():
    model, inputs = LLAVA.model(), LLAVA.inputs([1])
    with torch.no_grad():
        with Entering(model) as full:
            model(**inputs)
        with p2d.prune(model, TFPSLayer(layer=2), 0.25) as pruned, Entering(model) as short:
            model(**inputs)
    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    want = p2d.functional.fps(full.hidden[2][0, places], 9).sort().values.tolist()
    assert pruned.record.samples[0]["IMAGE_0"].indices == want
    assert short.hidden[1].equal(full.hidden[1])


def test_fields_and_names():
    assert (TFPSLayer().name, TFPSReleased().name) == ("tfps-layer", "tfps-released")
    assert TFPSLayer().layer == 1
    assert TFPSLayer().rounding == "half-up"
    assert TFPSLayer(compat="released").rounding == "truncate"
    assert TFPSReleased().compat == "released"
    assert TFPSReleased().rounding == "truncate"
    with pytest.raises(dataclasses.FrozenInstanceError):
        TFPSLayer().layer = 2


@pytest.mark.parametrize("layer", [0, -1, True, 1.0, "1"])
def test_layers_before_the_first_are_refused_with_the_remedy(layer):
    with pytest.raises(
        p2d.PruneError, match="layer 1 or later; to choose before the model use method='tfps'"
    ):
        TFPSLayer(layer=layer)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric": "cosin"}, "cosine"),
        ({"start": "isolate"}, "isolated"),
        ({"start": -1}, "token index from 0"),
        ({"compat": "relased"}, "released"),
        ({"compat": "released", "metric": "l2"}, "fixes metric='cosine'"),
        ({"compat": "released", "start": "center"}, "fixes metric='cosine' and start='isolated'"),
    ],
)
def test_other_fields_are_checked_when_made(fields, words):
    with pytest.raises(p2d.PruneError, match=words):
        TFPSLayer(**fields)


def test_a_layer_the_model_does_not_have():
    with pytest.raises(p2d.PruneError, match="layer 4 asked, the language model has layers 0 to 3"):
        p2d.prune(LLAVA.model(), TFPSLayer(layer=4), 0.5)
