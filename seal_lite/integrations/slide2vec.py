"""Runs as tile encoders of slide2vec, which finds them by the entry point of this package.

slide2vec names encoders without arguments. The environment variable SEAL_LITE_RUNS lists the runs
that it shall know (`named_runs`)::

    export SEAL_LITE_RUNS=runs/c5:hf-hub:OWNER/NAME
    python -c "import slide2vec; print(slide2vec.list_models())"  # seal:c5, seal:NAME, ...
"""

from __future__ import annotations

from collections.abc import Callable

from seal_lite.integrations.named_runs import RunFacts, named_runs, read_facts


def register_runs() -> None:
    """Register every run of SEAL_LITE_RUNS; slide2vec calls this before it first looks up a name.

    No weights are loaded here, but when slide2vec makes the encoder.

    Raises
    ------
    InputError
        As `named_runs` and `read_facts` do. slide2vec then knows none of the runs, and quotes the
        message wherever it misses one.
    """
    from slide2vec.encoders.registry import register_encoder

    for name, run in named_runs().items():
        facts = read_facts(run)
        add = register_encoder(
            name,
            encode_dim=facts.dim,
            input_size=facts.px,
            supports_variable_input_size=False,
            supported_spacing_um=facts.um_per_px,
            precision="fp32",
            source=run,
        )
        add(_encoder_class(run, facts))


def _encoder_class(run: str, facts: RunFacts) -> type:
    """Return the class whose instances are the run's encoder, for slide2vec to make them."""
    from slide2vec.encoders.base import TorchTileEncoder

    from seal_lite.hub import load_encoder

    class SealTileEncoder(TorchTileEncoder):
        """The encoder of one run."""

        def __init__(self, *, output_variant: str | None = None) -> None:
            module, transform, _ = load_encoder(run, device="cpu")
            self._transform = transform
            super().__init__(
                module,
                encode_dim=facts.dim,
                input_size=facts.px,
                mean=facts.mean,
                std=facts.std,
                output_variant=output_variant,
            )

        def get_transform(self) -> Callable:
            """Return the transform for images of any size, which resamples as training does."""
            return self._transform

    return SealTileEncoder
