"""The guard before a cross-validation: what may not be split, and what may."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_adata

from seal_lite import InputError
from seal_lite.data import leakage
from seal_lite.data.section import load_sections


def section(adata, name, patient):
    adata.uns |= {"section_id": name, "patient_id": patient}
    return SimpleNamespace(adata=adata, name=name, patient=patient)


def counts(seed, *, n=60, genes=40):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1.0, 3.0, genes), (n, genes))


def test_different_patients_may_be_split(sections):
    assert leakage.check_leakage(sections, ["PA", "PB"]) == []


def test_one_group_may_hold_anything():
    twins = [section(make_adata(counts(0)), name, "P") for name in ("P1", "P2")]
    assert leakage.check_leakage(twins, ["P", "P"]) == []


def test_a_sample_under_a_second_id_is_named():
    """Spots and genes in another order, under other names: the counts are the same."""
    x, rng = counts(0), np.random.default_rng(1)
    mixed = x[rng.permutation(len(x))][:, rng.permutation(x.shape[1])]
    twins = [section(make_adata(x), "TENX1", "A"), section(make_adata(mixed), "NCBI7", "B")]
    with pytest.raises(InputError, match="TENX1 and NCBI7 have the same counts"):
        leakage.check_leakage(twins, ["A", "B"])
    assert leakage.check_leakage(twins, ["A", "B"], allow=True) == [
        "sections TENX1 and NCBI7 have the same counts"
    ]


def test_a_sample_filtered_otherwise_is_named():
    x = counts(0)
    twins = [section(make_adata(x), "A1", "A"), section(make_adata(x[:-3]), "B1", "B")]
    assert "all but the same expression" in leakage.find_leakage(twins, ["A", "B"])[0]
    other = [twins[0], section(make_adata(counts(5)), "B1", "B")]
    assert leakage.find_leakage(other, ["A", "B"]) == []


def test_one_picture_with_other_counts_is_named(sections):
    a, b = sections
    fake = section(make_adata(counts(3)), "PB1", "PB")
    fake.adata.uns |= {k: a.adata.uns[k] for k in ("image_path", "um_per_px")}
    assert "the same picture" in leakage.find_leakage([a, fake], ["PA", "PB"])[0]


def test_a_patient_on_both_sides_is_named():
    two = [section(make_adata(counts(s)), f"C{s}", "C") for s in (1, 2)]
    with pytest.raises(InputError, match="C1 and C2 are both of patient C .*--allow-leakage"):
        leakage.check_leakage(two, ["C1", "C2"])


def test_real_neighbours_are_a_patients_and_no_twins(her2st):
    sections = load_sections(her2st, ["C2", "C3", "C4"])
    said = leakage.find_leakage(sections, ["C2", "C3", "C4"])
    assert len(said) == 3 and all("both of patient C" in s for s in said)
