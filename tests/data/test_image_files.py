import numpy as np
import pytest
import torch
from PIL import Image

from noisylightning.data.clothing1m import Clothing1MDataModule
from noisylightning.data.folder import ImageFolderDataModule, ImageListDataModule
from noisylightning.data.image_files import ImageFiles


def read_image(path, size):
    return ImageFiles([path], size).read(0)


CLASSES = ["cat", "dog", "owl"]


def write_images(folder, names, suffix=".png"):
    """Images of one grey each, which tells which image it is."""
    for i, name in enumerate(names):
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i % 3, 16), (i, i, i)).save(path)


@pytest.fixture
def own(tmp_path):
    """A folder of 30 images and a table of their labels, as a newcomer has them."""
    write_images(tmp_path / "photos", [f"{i:02}" for i in range(30)])
    rows = [f"{i:02}.png,{CLASSES[i % 3]}" for i in range(30)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    return tmp_path


def folder_of(own, **kwargs):
    settings = {"root": own / "photos", "labels": own / "labels.csv", "size": 8, "mean": [0.0] * 3, "std": [1.0] * 3}
    return ImageFolderDataModule(**settings | kwargs)


def greys(batch):
    return (batch.mean(dim=(1, 2, 3)) * 255).round().int().tolist()


@pytest.mark.parametrize(("in_memory", "num_workers"), [(None, 0), (False, 0), (False, 1)])
def test_a_folder_with_a_table_of_labels_is_read(own, in_memory, num_workers):
    data = folder_of(own, in_memory=in_memory, num_workers=num_workers, batch_size=30)
    assert (data.num_classes, data.class_names, data.has_test) == (3, CLASSES, False)
    data.setup("fit")
    images, labels = next(iter(data.estimation_dataloader()))
    assert images.shape == (30, 3, 8, 8)
    assert greys(images) == list(range(30))
    assert labels.tolist() == [i % 3 for i in range(30)]
    assert data.summary == {"train": 27, "validation": 3}
    for batch, _ in data.train_dataloader():
        assert batch.shape[1:] == (3, 8, 8)
    assert isinstance(data.train_dataloader().dataset.inputs, torch.Tensor) == (in_memory is None)


def test_test_images_come_from_a_table_of_their_own(own):
    (own / "test.csv").write_text("image,label\n03.png,owl\n04.png,cat\n")
    data = folder_of(own, test_labels=own / "test.csv")
    data.setup("test")
    images, labels = next(iter(data.test_dataloader()))
    assert greys(images) == [3, 4]
    assert labels.tolist() == [2, 0]


def test_an_image_is_scaled_to_cover_the_square_and_cut_from_its_middle(tmp_path):
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", 10) == 200).all()
    assert read_image(tmp_path / "wide.png", 20).shape == (3, 20, 20)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_every_kind_come_in_three_channels(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new("RGB", (9, 9), (255, 255, 255)).convert(mode).save(path)
    assert read_image(path, 4).shape == (3, 4, 4)


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4] = 255
    Image.fromarray(image).save(tmp_path / "photo.png", exif=exif)
    assert read_image(tmp_path / "photo.png", 8)[0, 0].max() == 0


def test_a_corrupt_image_is_named_and_left_out_only_if_asked(own):
    Image.effect_noise((64, 64), 90).convert("RGB").save(own / "photos" / "04.png")
    whole = (own / "photos" / "04.png").read_bytes()
    (own / "photos" / "04.png").write_bytes(whole[: len(whole) // 2])
    (own / "photos" / "07.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"the image .*04\.png is corrupt or no image .*skip_corrupt") as caught:
        folder_of(own).setup("fit")
    assert "\n" not in str(caught.value)
    for in_memory in (True, False):
        data = folder_of(own, skip_corrupt=True, in_memory=in_memory, batch_size=30)
        with pytest.warns(UserWarning, match=r"2 of 30 images are left out, the first because .*04\.png"):
            data.setup("fit")
        images, labels = next(iter(data.estimation_dataloader()))
        kept = [i for i in range(30) if i not in (4, 7)]
        assert greys(images) == kept
        assert labels.tolist() == [i % 3 for i in kept]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,label\n01.png,cat\n", "no column 'image'"),
        ("image,label\n01.png,\n", "line 2, has no label"),
        ("image,label\n01.png,cat\n02.png,bird\n", "line 3, has the label 'bird', not among the classes cat, dog, owl"),
        ("image,label\n99.png,cat\n", "line 2, names the image .*99.png, which is not there"),
        ("image,label\n01.png,cat\n02.png,dog\n", "no sample of class 2"),
        ("image,label\n", r"shape \(N,\) with N > 0, got \(0,\)"),
    ],
)
def test_a_bad_table_is_refused_in_one_sentence(own, table, words):
    (own / "bad.csv").write_text(table)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        folder_of(own, labels=own / "bad.csv", class_names=CLASSES).setup("fit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("", "bad.csv names no class"),
        ("image,label\n", "bad.csv names no class"),
        ("image,label\n01.png,\n", "bad.csv names no class"),
        ("image,label\n01.png,cat\n02.png,cat\n", "bad.csv names only the class 'cat'; give samples of at least two"),
    ],
)
def test_a_table_must_name_two_classes(own, table, words):
    (own / "bad.csv").write_text(table)
    with pytest.raises(ValueError, match=words):
        folder_of(own, labels=own / "bad.csv", class_names=None)


def test_a_fault_in_the_test_table_shows_before_the_training(own):
    (own / "bad.csv").write_text("image,label\n01.png,cat\n02.png,bird\n")
    with pytest.raises(ValueError, match="line 3, has the label 'bird'"):
        folder_of(own, test_labels=own / "bad.csv").prepare_data()


def test_a_window_larger_than_the_square_is_refused(own):
    with pytest.raises(ValueError, match="resize=7 is smaller than size=8"):
        folder_of(own, resize=7)


def test_files_are_read_alike_one_by_one_and_all_at_once(own):
    files = ImageFiles([own / "photos" / f"{i:02}.png" for i in range(5)], 8)
    assert torch.equal(files.all(), files[torch.arange(5)])


def test_lists_with_labels_as_in_webvision(tmp_path):
    write_images(tmp_path, [f"google/q{i} x/{i}" for i in range(12)], ".jpg")
    lines = [f"google/q{i} x/{i}.jpg {i % 3}" for i in range(12)]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "names.txt").write_text("n01 cat, mog\nn02 dog\nn03 owl\n")
    data = ImageListDataModule(tmp_path, tmp_path / "train.txt", tmp_path / "names.txt", size=8, batch_size=12)
    assert data.class_names == ["n01 cat, mog", "n02 dog", "n03 owl"]
    data.setup("fit")
    assert next(iter(data.estimation_dataloader()))[1].tolist() == [i % 3 for i in range(12)]
    (tmp_path / "train.txt").write_text("google/q0 x/0.jpg 3\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 1, has the label '3', not among the 3 classes"):
        ImageListDataModule(tmp_path, tmp_path / "train.txt", CLASSES).setup("fit")
    (tmp_path / "train.txt").write_bytes(b"caf\xe9/0.jpg 0\n")
    with pytest.raises(ValueError, match=r"train\.txt is not UTF-8 \(byte 3\)"):
        ImageListDataModule(tmp_path, tmp_path / "train.txt", CLASSES).setup("fit")


def test_lists_by_folder_as_in_food101n(tmp_path):
    write_images(tmp_path / "noisy", [f"{CLASSES[i % 3]}/{i}" for i in range(12)], ".jpg")
    write_images(tmp_path / "clean", ["owl/0", "cat/1"], ".jpg")
    lines = ["class_name/key", *(f"{CLASSES[i % 3]}/{i}.jpg" for i in range(12))]
    (tmp_path / "imagelist.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "test.txt").write_text("owl/0\ncat/1\n")
    data = ImageListDataModule(
        tmp_path / "noisy", tmp_path / "imagelist.tsv", CLASSES, tmp_path / "test.txt", tmp_path / "clean",
        skip_lines=1, size=8,
    )  # fmt: skip
    data.setup()
    assert data.summary == {"train": 11, "validation": 1, "test": 2}
    assert next(iter(data.test_dataloader()))[1].tolist() == [2, 0]


def write_clothing1m(root):
    """The official lists, 28 noisy images and 14 in each clean part."""
    label_of = {"noisy": [], "clean": []}
    for part, n in (("noisy_train", 28), ("clean_train", 14), ("clean_val", 14), ("clean_test", 14)):
        keys = [f"images/{i % 2}/{part}{i}" for i in range(n)]
        write_images(root, keys, ".jpg")
        (root / f"{part}_key_list.txt").write_text("".join(f"{key}.jpg\n" for key in keys))
        label_of[part.split("_")[0]] += [f"{key}.jpg {i % 14}\n" for i, key in enumerate(keys)]
    for kind, lines in label_of.items():
        (root / f"{kind}_label_kv.txt").write_text("".join(lines))


def test_clothing1m_by_the_official_lists(tmp_path):
    write_clothing1m(tmp_path)
    data = Clothing1MDataModule(tmp_path, size=8)
    data.setup()
    assert data.summary == {"train": 25, "validation": 3, "trusted": 14, "test": 14}
    assert next(iter(data.trusted_dataloader()))[1].tolist() == list(range(14))
    assert len(data.class_names) == data.num_classes == 14
    data = Clothing1MDataModule(tmp_path, size=8, validation="clean")
    data.setup("fit")
    assert data.summary == {"train": 28, "validation": 14, "trusted": 14}
    assert next(iter(data.val_dataloader()))[1].tolist() == list(range(14))


def test_broken_lists_of_clothing1m_are_named(tmp_path):
    write_clothing1m(tmp_path)
    with (tmp_path / "noisy_train_key_list.txt").open("a") as file:
        file.write("images/0/unknown.jpg\n")
    with pytest.raises(ValueError, match=r"noisy_train_key_list\.txt, line 29, names images/0/unknown\.jpg, without"):
        Clothing1MDataModule(tmp_path).setup("fit")
    (tmp_path / "clean_label_kv.txt").write_text("images/0/a.jpg 14\n")
    with pytest.raises(ValueError, match=r"clean_label_kv\.txt, line 1, has the label '14', not one of 0\.\.13"):
        Clothing1MDataModule(tmp_path).setup("test")
    (tmp_path / "clean_label_kv.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no list .*clean_label_kv\.txt"):
        Clothing1MDataModule(tmp_path).setup("test")


@pytest.fixture
def folders(tmp_path):
    """Thirty images in a folder for each class, and three to test."""
    write_images(tmp_path / "train", [f"{CLASSES[i % 3]}/{i:02}" for i in range(30)])
    write_images(tmp_path / "test", ["owl/00", "cat/deeper/01", "dog/02"])
    return tmp_path


def test_a_folder_for_each_class_needs_no_table(folders):
    data = ImageFolderDataModule(
        folders / "train", test_root=folders / "test", predict_root=folders / "test", size=8, mean=[0.0] * 3,
        std=[1.0] * 3, batch_size=30,
    )  # fmt: skip
    assert (data.num_classes, data.class_names, data.num_features) == (3, CLASSES, 192)
    data.setup()
    images, labels = next(iter(data.estimation_dataloader()))
    assert [grey % 3 for grey in greys(images)] == labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    images, labels = next(iter(data.test_dataloader()))
    assert dict(zip(greys(images), labels.tolist(), strict=True)) == {0: 2, 1: 0, 2: 1}
    images, labels = next(iter(data.predict_dataloader()))
    assert (greys(images), labels.tolist()) == ([1, 2, 0], [-1] * 3)  # in order of their paths


def test_files_that_are_no_images_are_left_out_with_a_warning(folders):
    (folders / "train" / "cat" / "notes.txt").write_text("a cat")
    (folders / "train" / "dog" / ".hidden").write_text("")
    (folders / "train" / ".cache").mkdir()
    data = ImageFolderDataModule(folders / "train", size=8)
    with pytest.warns(UserWarning, match=r"1 files in .*cat are no images and left out, .*notes\.txt the first"):
        data.setup("fit")
    assert data.summary == {"train": 27, "validation": 3}


def test_folders_that_do_not_serve_are_named(folders):
    with pytest.raises(
        ValueError, match=r"holds no folder for each class: make them, or set labels \(--data\.labels\)"
    ):
        ImageFolderDataModule(folders / "train" / "cat")
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent; correct root \(--data\.root\)"):
        ImageFolderDataModule(folders / "absent")
    with pytest.raises(ValueError, match="names only the class 'deeper'"):
        ImageFolderDataModule(folders / "test" / "cat")
    (folders / "test" / "bird").mkdir()
    with pytest.raises(ValueError, match=r"bird has the label 'bird', not among the classes cat, dog, owl"):
        ImageFolderDataModule(folders / "train", test_root=folders / "test").prepare_data()
    with pytest.raises(ValueError, match=r"holds no image: correct predict_root \(--data\.predict_root\)"):
        ImageFolderDataModule(folders / "train", predict_root=folders / "test" / "bird").setup("predict")


def test_a_missing_column_is_answered_with_the_option_that_names_it(own):
    (own / "labels.csv").write_text("file,kind\n01.png,cat\n")
    with pytest.raises(ValueError, match=r"\(it has file, kind\); set image_column \(--data\.image_column\)"):
        folder_of(own)
    with pytest.raises(ValueError, match=r"\(it has file, kind\); set label_column \(--data\.label_column\)"):
        folder_of(own, image_column="file")
