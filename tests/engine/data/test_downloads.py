from types import SimpleNamespace

import numpy as np
import pytest

from rjem_cli.engine.data.downloads import read_downloaded, to_image_set
from rjem_cli.errors import AbsentError


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_offline_and_absent_says_what_to_do(name):
    with pytest.raises(AbsentError, match=f"{name} is not in .* RJEM_OFFLINE forbids the download"):
        read_downloaded(name)


def test_cifar_and_svhn_arrays_become_the_same_form():
    cifar = SimpleNamespace(
        data=np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3), targets=[1, 0], classes=["a b", "c"]
    )
    svhn = SimpleNamespace(data=cifar.data.transpose(0, 3, 1, 2), labels=np.array([1, 0]))
    one, other = to_image_set(cifar), to_image_set(svhn)
    assert one.class_names == ("a_b", "c") and len(other.class_names) == 10
    assert one.pixels.shape == (2, 3, 4, 5) and (one.pixels == other.pixels).all()
    assert one.labels.tolist() == other.labels.tolist() == [1, 0]
