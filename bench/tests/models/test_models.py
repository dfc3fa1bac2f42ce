"""Parameter counts by hand, and what each model must not see."""

import pytest
import torch
from torch import nn

from metaadamw_bench.models.forecaster import Forecaster
from metaadamw_bench.models.language_model import LanguageModel
from metaadamw_bench.models.positions import Positions
from metaadamw_bench.models.resnet import ResNet
from metaadamw_bench.models.sentiment import Sentiment
from metaadamw_bench.models.translator import Translator


def linear(inputs, outputs):
    return (inputs + 1) * outputs


def attention(width):
    return linear(width, 3 * width) + linear(width, width)


def norm(width):
    return 2 * width


def feed_forward(width, inner):
    return linear(width, inner) + linear(inner, width)


def encoder_layer(width):
    return attention(width) + feed_forward(width, 4 * width) + 2 * norm(width)


def decoder_layer(width):
    return 2 * attention(width) + feed_forward(width, 4 * width) + 3 * norm(width)


def translator(source, target, width, layers, shared):
    embeddings = (source if shared else source + target) * width
    stack = layers * (encoder_layer(width) + decoder_layer(width)) + 2 * norm(width)
    return embeddings + stack + linear(width, target)


def block(inputs, outputs):
    shortcut = 0 if inputs == outputs else inputs * outputs + norm(outputs)
    return 9 * inputs * outputs + 9 * outputs * outputs + 2 * norm(outputs) + shortcut


def lstm_layer(inputs, width):
    return 2 * (4 * width * (inputs + width) + 2 * 4 * width)


RESNET18 = (
    9 * 3 * 64
    + norm(64)
    + sum(block(a, b) + block(b, b) for a, b in ((64, 64), (64, 128), (128, 256), (256, 512)))
    + linear(512, 10)
)
COUNTS = [
    (Forecaster, (), linear(1, 128) + 2 * encoder_layer(128) + linear(128, 1), 396_929),
    (
        LanguageModel,
        (10_000,),
        10_128 * 128 + 2 * encoder_layer(128) + norm(128) + linear(128, 10_000),
        2_983_184,
    ),
    (Translator, (9_762,), translator(9_762, 9_762, 256, 4, shared=True), 12_381_730),
    (Translator, (9_000, 7_000), translator(9_000, 7_000, 256, 4, shared=False), None),
    (ResNet, (), RESNET18, 11_173_962),
    (ResNet, (8, (1, 1, 1)), 27 * 8 + 16 + block(8, 8) + block(8, 16) + block(16, 32) + 330, None),
    (
        Sentiment,
        (25_000,),
        25_000 * 32 + lstm_layer(32, 64) + lstm_layer(128, 64) + linear(128, 2),
        949_762,
    ),
]


@pytest.mark.parametrize(("model", "arguments", "by_hand", "number"), COUNTS)
def test_parameter_counts(model, arguments, by_hand, number):
    found = sum(parameter.numel() for parameter in model(*arguments).parameters())
    assert found == by_hand
    assert number in (None, by_hand)


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_positions_as_in_the_transformer_paper():
    table = Positions(5, 4)(torch.zeros(1, 5, 4))[0]
    position = torch.arange(5.0)
    expected = [f(position / scale) for scale in (1, 100) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(table, torch.stack(expected, dim=1))


@pytest.mark.parametrize("training", [True, False])
def test_language_model_does_not_see_the_future(training):
    model = LanguageModel(50, 16, 32, dropout=0.0).train(training)
    words = torch.randint(50, (2, 16))
    changed = words.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 50
    first, second = model(words), model(changed)
    torch.testing.assert_close(first[:, :9], second[:, :9])
    assert not torch.allclose(first[:, 9], second[:, 9])


def translate(pad, training=True):
    model = Translator(50, 40, pad, 16, 32, 4, 2, dropout=0.0).train(training)
    source, target = torch.randint(4, 50, (3, 6)), torch.randint(4, 40, (3, 5))
    source[1, 4:] = 0
    return model, source, target


@pytest.mark.parametrize("training", [True, False])
def test_translator_does_not_see_the_targets_future(training):
    model, source, target = translate(0, training)
    changed = target.clone()
    changed[:, 3:] = 4 + (changed[:, 3:] - 3) % 36
    torch.testing.assert_close(model(source, target)[:, :3], model(source, changed)[:, :3])


@pytest.mark.parametrize("training", [True, False])
def test_translator_with_masks_ignores_padding(training):
    model, source, target = translate(0, training)
    wider = nn.functional.pad(source, (0, 3))
    torch.testing.assert_close(model(source, target), model(wider, target))
    alone = model(source[1:2, :4], target[1:2])
    torch.testing.assert_close(model(source, target)[1:2], alone)


def test_translator_without_masks_sees_padding():
    model, source, target = translate(None)
    wider = nn.functional.pad(source, (0, 3))
    assert not torch.allclose(model(source, target), model(wider, target))


def test_translator_agrees_with_itself_in_both_modes():
    model, source, target = translate(0)
    with torch.no_grad():
        trained = model(source, target)
        torch.testing.assert_close(trained, model.eval()(source, target))


def test_one_embedding_serves_both_sides():
    model = Translator(50)
    assert model.target_embedding is model.source_embedding
    assert model.output.weight is not model.source_embedding.weight


def test_resnet_halves_the_image_in_every_stage_but_the_first():
    model = ResNet(4, (1, 1, 1))
    sizes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda module, _, output: sizes.append(output.shape[1:]))
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert model(images).shape == (2, 10)
    assert sizes == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]


def test_sentiment_reads_the_last_states_of_both_directions():
    model = Sentiment(50, 0, 8, 16, layers=1, dropout=0.0)
    words = torch.randint(1, 50, (2, 7))
    outputs, _ = model.lstm(model.embedding(words))
    expected = model.fc(torch.cat([outputs[:, -1, :16], outputs[:, 0, 16:]], dim=1))
    torch.testing.assert_close(model(words), expected)


def test_initial_weights():
    language = LanguageModel(2_000, 16, 32)
    assert language.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert language.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not language.head.bias.any()
    forecaster = Forecaster()
    linear1 = forecaster.encoder.layers[0].linear1
    bound = (6 / (128 + 512)) ** 0.5  # Xavier
    assert 0.99 * bound < linear1.weight.abs().max().item() <= bound
    assert not linear1.bias.any()
