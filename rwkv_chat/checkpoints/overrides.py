"""What a person may know of a model that no file tells, in place of what was found."""

from dataclasses import dataclass, replace

from rwkv_chat.checkpoints.layout import converted_shapes
from rwkv_chat.errors import UsageError
from rwkv_chat.models.generations import GENERATIONS
from rwkv_chat.models.spec import ModelSpec

__all__ = ["Overrides"]


@dataclass(frozen=True, slots=True)
class Overrides:
    """`generation` is such as "3"; the parts that only some of its models have need not be named.

    `group_norm_eps` and `key_eps` are fields of ModelSpec.
    """

    group_norm_eps: float | None = None
    key_eps: float | None = None
    generation: str | None = None

    def apply(self, spec: ModelSpec) -> ModelSpec:
        """The shape of the model as it is to be used.

        Raises:
            UsageError: the model cannot have such an epsilon, or be of that generation.
        """
        if self.generation is not None:
            spec = _as_generation(spec, self.generation)
        if self.group_norm_eps is not None:
            if not spec.parts.has_group_norm:
                raise UsageError(
                    f"RWKV-{spec.generation} has no group norm, so it cannot be given an epsilon "
                    "for it."
                )
            _check_epsilon("the group norm", self.group_norm_eps)
            spec = replace(spec, group_norm_eps=float(self.group_norm_eps))
        if self.key_eps is not None:
            if not spec.parts.key_eps:
                raise UsageError(
                    f"RWKV-{spec.generation} adds no epsilon to its sums, so it cannot be given "
                    "one. RWKV-2 and 3 do."
                )
            _check_epsilon("the sum of keys", self.key_eps)
            spec = replace(spec, key_eps=float(self.key_eps))
        return spec


def _as_generation(spec: ModelSpec, wanted: str) -> ModelSpec:
    others = _others(spec)
    for name in ("+".join((wanted, *spec.generation.split("+")[1:])), wanted):
        if name in others:
            return others[name]
    known = ", ".join(others)
    raise UsageError(
        f"Its tensors are those of RWKV-{spec.generation}, so it cannot be opened as generation "
        f'"{wanted[:40]}". It can be opened as {known}.'
    )


def _others(spec: ModelSpec) -> dict[str, ModelSpec]:
    """`spec` and every other one that has the same tensors, by the name of its generation."""
    shapes = converted_shapes(spec, "f32")
    found = {}
    for name, parts in GENERATIONS.items():
        other = replace(spec, generation=name, key_eps=0.0) if name != spec.generation else spec
        if parts.letters == spec.parts.letters and converted_shapes(other, "f32") == shapes:
            found[name] = other
    return found


def _check_epsilon(place: str, epsilon: float) -> None:
    if not 0 < epsilon < 1:
        raise UsageError(f"The epsilon of {place} must lie between 0 and 1, not {epsilon}.")
