"""The guard before a cross-validation: what may not be split, and what may."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import make_adata

from seal_lite import InputError
from seal_lite.data import leakage
from seal_lite.data.leakage import check_leakage, expression_correlations, find_leakage


def make_section(counts, name, patient):
    adata = make_adata(counts)
    adata.uns |= {"section_id": name, "patient_id": patient}
    return SimpleNamespace(adata=adata, name=name, patient=patient)


def draw_counts(seed, *, n=60, n_genes=40):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1.0, 3.0, n_genes), (n, n_genes))


def test_different_patients_may_be_split(sections):
    assert check_leakage(sections, ["PA", "PB"]) == []


def test_one_group_may_hold_anything():
    twins = [make_section(draw_counts(0), name, "P") for name in ("P1", "P2")]
    assert check_leakage(twins, ["P", "P"]) == []


def test_a_sample_under_a_second_id_is_named():
    """Spots and genes in another order, under other names: the counts are the same."""
    counts = draw_counts(0)
    rng = np.random.default_rng(1)
    shuffled = counts[rng.permutation(len(counts))][:, rng.permutation(counts.shape[1])]
    twins = [make_section(counts, "TENX1", "A"), make_section(shuffled, "NCBI7", "B")]
    message = "sections TENX1 and NCBI7 have the same counts"
    with pytest.raises(InputError, match=message):
        check_leakage(twins, ["A", "B"])
    assert check_leakage(twins, ["A", "B"], allow=True) == [message]


def test_a_sample_filtered_otherwise_is_named():
    counts = draw_counts(0)
    section = make_section(counts, "A1", "A")
    filtered = make_section(counts[:-3], "B1", "B")
    (message,) = find_leakage([section, filtered], ["A", "B"])
    assert "almost the same expression" in message
    other = make_section(draw_counts(5), "B1", "B")
    assert find_leakage([section, other], ["A", "B"]) == []


def test_one_image_with_other_counts_is_named(sections):
    section = sections[0]
    copy = make_section(draw_counts(3), "PB1", "PB")
    for key in ("image_path", "um_per_px"):
        copy.adata.uns[key] = section.adata.uns[key]
    (message,) = find_leakage([section, copy], ["PA", "PB"])
    assert "almost the same image" in message


def test_a_patient_on_both_sides_is_named():
    sections = [make_section(draw_counts(seed), f"C{seed}", "C") for seed in (1, 2)]
    with pytest.raises(InputError, match="C1 and C2 are both of patient C .*--allow-leakage"):
        check_leakage(sections, ["C1", "C2"])


def test_neighbouring_sections_of_a_real_tumour_share_a_patient_and_are_no_twins(her2st):
    from seal_lite.data.section import load_counts

    adatas = load_counts(her2st, ["C2", "C3"])
    sections = [
        SimpleNamespace(adata=adata, name=adata.uns["section_id"], patient=adata.uns["patient_id"])
        for adata in adatas
    ]
    messages = find_leakage(sections, ["C2", "C3"])
    assert messages == ["sections C2 and C3 are both of patient C"]


def test_correlations_are_over_the_genes_that_both_sections_have(monkeypatch):
    """Lists of genes differ in length and order; blocks of genes change nothing."""
    rng = np.random.default_rng(0)
    shared = pd.Series(rng.lognormal(1, 1, 40), index=range(40))
    profiles = [shared]
    for n in (40, 25, 7, 2):
        genes = rng.permutation(60)[:n]
        noisy = rng.lognormal(1, 1, n) + shared.reindex(genes, fill_value=0).to_numpy()
        profiles.append(pd.Series(noisy, index=genes))
    profiles.append(pd.Series(3.0, index=range(40)))  # constant
    profiles.append(pd.Series(rng.random(5), index=range(100, 105)))  # has no gene of the others
    monkeypatch.setattr(leakage, "GENES_AT_ONCE", 7)
    r = expression_correlations(profiles)
    for i, first in enumerate(profiles[:4]):
        for j, second in enumerate(profiles[:4]):
            common = first.index.intersection(second.index)
            expected = np.corrcoef(first[common], second[common])[0, 1]
            assert r[i, j] == pytest.approx(expected, abs=1e-12)
    assert (r[4:6] == 0).all()  # two genes; no spread
    np.testing.assert_array_equal(np.flatnonzero(r[6]), [6])


def test_a_section_is_read_once_however_many_there_are(monkeypatch):
    """Pairs are found by products of matrices."""
    sections = [make_section(draw_counts(seed), f"S{seed}", f"P{seed}") for seed in range(12)]
    sections.append(make_section(draw_counts(3), "COPY", "P12"))
    read = []
    of_section = leakage.Fingerprint.of_section
    monkeypatch.setattr(
        leakage.Fingerprint, "of_section", lambda s: read.append(s.name) or of_section(s)
    )
    (message,) = find_leakage(sections, [section.patient for section in sections])
    assert message == "sections S3 and COPY have the same counts"
    assert read == [section.name for section in sections]
