"""The public formats, on real data where they can be rebuilt and on imitations where not."""

import gzip
import hashlib
import io
import lzma
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from metaadamw_bench.data import DataError, cifar10, get_data_set, imdb, load, wikitext2


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def layout(data_set, name):
    return next(layout for layout in data_set.layouts if layout.name == name)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("etth1", "ETTh1.csv.gz"),
        ("wikitext2", "valid.txt.xz"),
        ("multi30k", "val.en.gz"),
        ("cifar10", "test_labels.npy"),
        ("imdb", "test.tsv.xz"),
    ],
)
def test_truncated_real_file_is_named(data_dir, tmp_path, name, file):
    for path in (data_dir / name).iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / file).unlink()
    content = (data_dir / name / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{file} is damaged or another file"):
        load(get_data_set(name), tmp_path)


def test_etth1_as_published(data_dir, tmp_path):
    packed = (data_dir / "etth1" / "ETTh1.csv.gz").read_bytes()
    (tmp_path / "ETTh1.csv").write_bytes(gzip.decompress(packed))
    series = load(get_data_set("etth1"), tmp_path)
    assert torch.equal(series, load(get_data_set("etth1"), data_dir))
    assert series.shape == (17420,)
    assert series[0].item() == pytest.approx(30.531)


def test_multi30k_as_published(data_dir, tmp_path):
    for path in (data_dir / "multi30k").iterdir():
        shutil.copy(path, tmp_path / path.name.replace("test2016", "test_2016_flickr"))
    text = load(get_data_set("multi30k"), tmp_path)
    assert text.words == load(get_data_set("multi30k"), data_dir).words
    assert [len(part.german.lengths) for part in (text.train, text.val, text.test)] == [
        29000,
        1014,
        1000,
    ]


def test_wikitext2_archive_reads_like_its_files(tmp_path):
    texts = {"train": " \n = A = \n \n a <unk> b \n", "valid": "b\n", "test": "c\n"}
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for name, text in texts.items():
            archive.writestr(f"wikitext-2/wiki.{name}.tokens", text)
            (tmp_path / name).write_text(text)
    packed = layout(wikitext2.DATA_SET, "official archive").read([tmp_path / "archive.zip"])
    plain = layout(wikitext2.DATA_SET, "published").read([tmp_path / name for name in texts])
    assert packed.words == plain.words == ["=", "A", "a", "<unk>", "b", "c"]
    assert torch.equal(packed.train.tokens, plain.train.tokens)
    assert packed.train.lengths.tolist() == [0, 3, 0, 3, 0]


def test_wikitext2_published_digests_are_those_of_the_text(data_dir):
    for file in layout(wikitext2.DATA_SET, "published").files[1:]:
        text = lzma.decompress((data_dir / "wikitext2" / f"{file.path}.xz").read_bytes())
        assert file.digest == f"sha256:{hashlib.sha256(text).hexdigest()}"


def test_imdb_archive_is_in_the_order_of_the_tables(tmp_path):
    reviews = {("train", "neg", 2): "bad", ("train", "pos", 2): "good", ("train", "neg", 10): "b"}
    reviews |= {("train", "pos", 10): "g", ("test", "pos", 0): "fine", ("test", "neg", 0): "dull"}
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as archive:
        for (part, label, number), text in reviews.items():
            add(archive, f"aclImdb/{part}/{label}/{number}_7.txt", text.encode())
        add(archive, "aclImdb/train/unsup/0_0.txt", b"unlabelled")
        add(archive, "aclImdb/README", b"")
    data = layout(imdb.DATA_SET, "published").read([tmp_path / "archive.tar.gz"])
    assert [data.words[token] for token in data.train.texts.tokens] == ["bad", "good", "b", "g"]
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert [data.words[token] for token in data.test.texts.tokens] == ["dull", "fine"]


def test_imdb_tables_keep_tabs_and_odd_line_separators(tmp_path):
    table = "0\tdull\ttab\n1\tfine\u2028line\x85next\n"
    (tmp_path / "table.xz").write_bytes(lzma.compress(table.encode()))
    assert imdb._rows(table) == [(0, "dull\ttab"), (1, "fine\u2028line\x85next")]


def test_cifar10_rebuilds_the_official_files(data_dir):
    data = load(cifar10.DATA_SET, data_dir)
    files = layout(cifar10.DATA_SET, "binary archive, unpacked").files
    for number, file in enumerate(files[:5]):
        part = slice(10_000 * number, 10_000 * (number + 1))
        labels = data.train.labels[part].to(torch.uint8).unsqueeze(1)
        records = torch.cat([labels, data.train.images[part].flatten(1)], dim=1)
        content = records.numpy().tobytes()
        assert file.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
        images, found = cifar10._records(content)
        assert np.array_equal(images, data.train.images[part].numpy())
        assert np.array_equal(found, data.train.labels[part].numpy())


def imitation():
    generator = np.random.default_rng(0)
    batches = []
    for _ in range(6):
        images = generator.integers(256, size=(4, 3072), dtype=np.uint8)
        batches.append((images, generator.integers(10, size=4, dtype=np.uint8)))
    return batches


@pytest.mark.parametrize("name", ["binary archive", "Python archive"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar10_official_formats(tmp_path, monkeypatch, name, unpacked):
    batches = imitation()
    expected = np.concatenate([images for images, _ in batches[:5]]).reshape(-1, 3, 32, 32)
    content = np.ascontiguousarray(expected.transpose(0, 2, 3, 1)).tobytes()
    monkeypatch.setattr(cifar10, "_CONTENT", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("METAADAMW_CACHE", str(tmp_path / "cache"))
    names = [f.path for f in layout(cifar10.DATA_SET, f"{name}, unpacked").files]
    with tarfile.open(tmp_path / "archive", "w:gz") as archive:
        for file, (images, labels) in zip(names, batches, strict=True):
            if name == "binary archive":
                data = np.concatenate([labels[:, None], images], axis=1).tobytes()
            else:
                batch = {b"data": images, b"labels": labels.tolist(), b"filenames": [b"a.png"]}
                data = pickle.dumps(batch, protocol=3)
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes(data)
            add(archive, file, data)
    if unpacked:
        found = layout(cifar10.DATA_SET, f"{name}, unpacked").read([tmp_path / f for f in names])
    else:
        found = layout(cifar10.DATA_SET, name).read([tmp_path / "archive"])
    assert np.array_equal(found.train.images.numpy(), expected)
    assert found.train.labels.tolist() == np.concatenate([n for _, n in batches[:5]]).tolist()
    assert found.test.labels.tolist() == batches[5][1].tolist()


def test_cifar10_checks_the_images_themselves(tmp_path, monkeypatch):
    monkeypatch.setenv("METAADAMW_CACHE", str(tmp_path / "cache"))
    for number, (images, labels) in enumerate(imitation()):
        (tmp_path / str(number)).write_bytes(np.concatenate([labels[:, None], images], 1).tobytes())
    with pytest.raises(ValueError, match="not those of CIFAR-10"):
        layout(cifar10.DATA_SET, "binary archive, unpacked").read(
            [tmp_path / str(number) for number in range(6)]
        )


def test_cifar10_batch_cannot_run_code():
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    with pytest.raises(pickle.UnpicklingError, match="does not belong into a CIFAR-10 batch"):
        cifar10._pickled(pickle.dumps(Evil()))
