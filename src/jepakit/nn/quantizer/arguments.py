"""What a quantizer may be built and called with."""

import torch

from jepakit._checks import check_bool, check_fraction, check_int, check_number, type_name

__all__: list[str] = []


def check_arguments(
    num_codes: int,
    dim: int,
    momentum: float,
    commitment_weight: float,
    cosine: bool,
    temperature: object,
    refresh_below: float,
    smoothing: float,
) -> None:
    """Raise unless these are arguments of `VectorQuantizer`."""
    check_int("num_codes", num_codes, minimum=2)
    check_int("dim", dim, minimum=1)
    check_fraction("momentum", momentum, open_low=True)
    if momentum == 1:
        raise ValueError("momentum=1: must be below 1; eval() leaves the codes as they are")
    check_number("commitment_weight", commitment_weight, minimum=0)
    check_bool("cosine", cosine)
    if temperature is not None and not callable(temperature):
        check_number("temperature", temperature, positive=True)
    check_fraction("refresh_below", refresh_below)
    if refresh_below == 1:
        raise ValueError("refresh_below=1: must be below 1, or every second code is dead")
    check_number("smoothing", smoothing, positive=True)
    if cosine and smoothing != 1e-5:
        raise ValueError(f"smoothing={smoothing}: has no effect with cosine=True")


def check_generator(generator: object) -> None:
    """Raise unless it is a generator or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator={generator!r}: must be a torch.Generator or None, got {type_name(generator)}"
        )
