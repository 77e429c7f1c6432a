"""Which training images are nearest to samples, and whether samples are copies of them."""

import torch

from benchmarks.neighbours import nearest, share_closer_than_real


def test_the_nearest_are_found_in_order():
    torch.manual_seed(0)
    queries, references = torch.randn(1201, 5), torch.randn(40, 5)
    expected = (queries[:, None] - references).square().sum(2).sqrt().sort(dim=1)
    distances, indices = nearest(queries, references, count=3)
    torch.testing.assert_close(distances, expected.values[:, :3], rtol=1e-4, atol=1e-5)
    assert indices.equal(expected.indices[:, :3])


def test_copies_are_closer_to_training_images_than_those_to_each_other():
    """On a line with images at 0, 10, 20, ... and mirror images a thousand away."""
    originals = torch.arange(0, 200, 10.0)[:, None]
    mirrored = originals + 1000
    for offset, expected in ((0.5, 1.0), (4.9, 1.0)):
        assert share_closer_than_real(originals + offset, originals, mirrored) == expected
        assert share_closer_than_real(mirrored + offset, originals, mirrored) == expected
    beyond = torch.tensor([[-9.0], [-11.0], [-50.0], [201.0]])  # 9, 11 and 50 from 0; 11 from 190
    assert share_closer_than_real(beyond, originals, mirrored) == 0.25


def test_an_image_and_its_mirror_image_are_one():
    """Where they look alike, the mirror image is no neighbour: a sample at distance 2 is still a copy."""
    originals = torch.tensor([[0.0], [10.0], [20.0]])
    assert share_closer_than_real(originals + 2, originals, originals + 0.1) == 1
    assert share_closer_than_real(torch.tensor([[31.0]]), originals, originals + 0.1) == 0


def test_a_mirror_image_has_neighbours_of_its_own():
    """Features do not mirror with the image: 105 is 4 from 101, but so is 100, at 1."""
    originals, mirrored = torch.tensor([[0.0], [10.0]]), torch.tensor([[100.0], [101.0]])
    assert share_closer_than_real(torch.tensor([[105.0]]), originals, mirrored) == 0
    assert share_closer_than_real(torch.tensor([[101.5]]), originals, mirrored) == 1


def test_new_images_are_no_copies():
    """Fresh points of the same distribution are closer than the real neighbours about half of the time."""
    torch.manual_seed(0)
    points = torch.randn(3, 1000, 8)
    assert 0.3 < share_closer_than_real(points[0], points[1], points[1] + 100) < 0.7
