"""FixedPoint: the equilibrium of any map as a layer, with the implicit gradient.

Forward: z* = f(z*, x, ...), by any solver of this package. Backward (implicit function theorem;
Bai, Kolter & Koltun, "Deep Equilibrium Models", NeurIPS 2019, theorem 1): with g = dL/dz* and
J = df/dz at z*, v solves v = J'v + g, and dL/dtheta = (df/dtheta)' v for everything else that f
reads. J'v is a vector-Jacobian product of one recorded evaluation, so nothing of the solve is kept
in memory. Both are fixed points, so any solver serves either.

Letters: O rows and D columns of z as the solvers see it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree
from torch_geometric.nn import MessagePassing

from distributed_ignn.errors import UserError
from distributed_ignn.nn.bounding import bound_weights, linear_weights
from distributed_ignn.nn.remembered import version_of
from distributed_ignn.nn.solving import (
    Failure,
    SolveInfo,
    WarmStart,
    Watcher,
    both_directions,
    refuse_float16,
)
from distributed_ignn.solvers.base import AnySolver, Evaluation
from distributed_ignn.solvers.methods import SolverSettings

Inject = Literal["auto", "argument", "add", "pair"]

_USUAL = SolverSettings(regularization=1e-10)  # as the layer's arguments have them
_ADVICE = (
    "make the map a contraction (smaller weights, or bound=0.9), damp it (beta below 1), or allow "
    "more steps (max_steps) or a larger tolerance"
)


class FixedPoint(nn.Module):
    r"""The solution of :math:`\mathbf{z} = f(\mathbf{z}, \mathbf{x}, \ldots)` as a layer.

    Gradients reach the parameters of ``f``, ``x`` and every other tensor that ``f`` reads, by the
    implicit function theorem (Bai et al., "Deep Equilibrium Models", NeurIPS 2019): one recorded
    evaluation of ``f`` at the solution, and a second fixed point for the backward pass. The memory
    needed is that of one evaluation, however many steps the solves take. They can be
    differentiated once.

    Whether a fixed point exists is up to ``f``: a contraction in z has exactly one. Where a solve
    does not reach its tolerance the layer warns and goes on with the best point found;
    ``layer.info`` has the numbers of the last call.

    In training mode all evaluations of one call see the same random numbers, so that dropout inside
    ``f`` is one mask a call and the map stands still. Layers that collect statistics of what they
    see (BatchNorm) see every evaluation.

    Args:
        f: any module or function. How it is called, ``inject`` says.
        solver: ``anderson``, ``broyden``, ``picard``, or an object with the methods of
            ``distributed_ignn.solvers.base.FixedPointSolver``. A learned solver has to be trained,
            so there is none by name; as an object, ``NeuralSolver`` serves where its network reads
            no graph, and without an estimator, which must know the map's weights.
        tolerance: relative residual :math:`\|f(\mathbf{z}) - \mathbf{z}\| / \|f(\mathbf{z})\|` at
            which to stop.
        max_steps: most evaluations of one solve.
        inject: how ``x`` enters: ``argument`` calls ``f(z, x, *args)``; ``add`` takes
            ``f(z, *args) + x``; ``pair`` calls ``f((z, x), *args)``, which in a bipartite layer of
            PyG, such as ``SAGEConv``, makes z the neighbours and x the node itself. ``auto`` is
            ``add`` for a PyG ``MessagePassing`` layer, which has no place for x, and ``argument``
            otherwise.
        bound: before every call, scale the matrices of all linear layers of torch and PyG in ``f``
            down until their spectral norms sum to at most this. Below 1 that suffices for chains
            and sums of linear layers, of activations with a slope of at most 1, and of averages
            over neighbours; it does not for attention or for sums over neighbours.
        memory, beta, regularization: of the solver, see ``forward.memory`` and its like in
            ``--help``; ``beta`` below 1 damps. One that no method here reads is refused; a solver
            that is an object has its own.
        adjoint_solver, adjoint_tolerance, adjoint_max_steps: the same for the backward solve; those
            of the forward solve by default.
        warm_start: start from the solution of the last call where that has the same shape.
        on_failure: ``warn`` (once, until a solve converges again), ``raise``, or ``ignore``.
            Numbers that are not finite raise unless ignored.

    Shapes:
        - **x:** any shape :math:`(\ldots)`; z has the same, or that of ``z0``
        - **output:** as z

    Raises:
        UserError: a setting outside its limits; at a call, a z of float16, a map whose output has
            another shape than z or that cannot be called so, or a solve that fails.

    Example::

        layer = FixedPoint(SAGEConv(64, 64), solver="anderson", tolerance=1e-5)
        z = layer(x, edge_index)           # z = SAGEConv(z, edge_index) + x
        z.sum().backward()
    """

    def __init__(
        self,
        f: Callable[..., Tensor],
        solver: str | AnySolver = "anderson",
        *,
        tolerance: float = 1e-5,
        max_steps: int = 100,
        inject: Inject = "auto",
        bound: float | None = None,
        memory: int = 5,
        beta: float = 1.0,
        regularization: float = 1e-10,
        adjoint_solver: str | AnySolver | None = None,
        adjoint_tolerance: float | None = None,
        adjoint_max_steps: int | None = None,
        warm_start: bool = False,
        on_failure: Failure = "warn",
    ) -> None:
        super().__init__()
        self.f = f
        self.inject = _resolve(inject, f)
        self._forward, self._adjoint = both_directions(
            solver,
            tolerance,
            max_steps,
            adjoint_solver=adjoint_solver,
            adjoint_tolerance=adjoint_tolerance,
            adjoint_max_steps=adjoint_max_steps,
            memory=memory,
            beta=beta,
            regularization=regularization,
            usual=_USUAL,
        )
        self.bound = bound
        self.info = SolveInfo()
        self._watcher = Watcher(on_failure, _ADVICE)
        self._warm = WarmStart(warm_start)
        if bound is not None:
            self._check_bound(bound)

    def _check_bound(self, bound: float) -> None:
        if not 0.0 < bound < 1.0:
            raise UserError(f"bound = {bound} must be above 0 and below 1; try 0.9")
        if not isinstance(self.f, nn.Module):
            raise UserError("bound needs a module, and f is a function; leave bound out")
        linear_weights(self.f)

    @torch.compiler.disable(reason="the solve decides on numbers; compile the map inside instead")
    def forward(self, x: Any, *args: Any, z0: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The fixed point for these inputs, of the shape of z.

        Args:
            x: what is injected.
            args, kwargs: handed on to ``f``.
            z0: where to start, with the shape of z; by default the last solution if it is kept and
                fits, else zeros of the shape of ``x``.

        Raises:
            UserError: see the class.
        """
        if self.bound is not None and isinstance(self.f, nn.Module):
            bound_weights(linear_weights(self.f), self.bound)
        start = _start(x, z0)
        random = _RandomNumbers.now(start.device) if self.training else None
        call = _Call(self.f, self.inject, x, args, kwargs, start, random)
        info = self.info = SolveInfo()
        first = call.rows(start)
        kept = None if z0 is not None else self._warm.find("forward", first)
        solution = self._forward.solve(call.step, first if kept is None else kept)
        self._warm.keep("forward", solution)
        info.forward = self._watcher.record("forward", solution, self._forward)
        recorded = None
        if torch.is_grad_enabled():
            recorded = self._attach(call, solution.point, info)
        # the user may write into it, and f may have returned x itself
        return solution.image.view(start.shape).clone() if recorded is None else recorded

    def _attach(self, call: _Call, point: Tensor, info: SolveInfo) -> Tensor | None:
        """One recorded evaluation with the implicit gradient; None if nothing asks for one."""
        point = point.view(call.like.shape).detach()
        if not call.asks_for_gradient() and not call(point).requires_grad:
            return None
        point.requires_grad_()
        image = call(point)

        def adjoint(point: Tensor, image: Tensor, incoming: Tensor) -> Tensor:
            return self._solve_adjoint(_Adjoint(point, image, call.rows(incoming)), info)

        result: Tensor = _Implicit.apply(adjoint, point, image)
        return result

    def _solve_adjoint(self, adjoint: _Adjoint, info: SolveInfo) -> Tensor:
        """v, of the shape of z."""
        kept = self._warm.find("backward", adjoint.incoming)
        solution = self._adjoint.solve(adjoint.step, adjoint.incoming if kept is None else kept)
        self._warm.keep("backward", solution)
        info.adjoint = self._watcher.record("backward", solution, self._adjoint)
        return solution.image.view(adjoint.point.shape)

    def extra_repr(self) -> str:
        """What is printed besides ``f``."""
        name = type(self._forward.solver).__name__
        return f"solver={name}, tolerance={self._forward.tolerance:g}, inject={self.inject}"


def _resolve(inject: Inject, f: Callable[..., Tensor]) -> Inject:
    if inject not in get_args(Inject):
        raise UserError(f"inject = {inject!r} must be one of {', '.join(get_args(Inject))}")
    if inject != "auto":
        return inject
    inner = getattr(f, "_orig_mod", f)  # of torch.compile
    return "add" if isinstance(inner, MessagePassing) else "argument"


def _start(x: Any, z0: Tensor | None) -> Tensor:
    """Where a solve starts; it is not differentiated."""
    way_out = "give z0 in float32 or bfloat16 (f may compute in float16)"
    if z0 is not None:
        refuse_float16(z0.dtype, "z0", way_out)
        return z0.detach()
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout is not torch.strided:
        found = f"a {x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(
            f"x is {found}, from which the shape of z cannot be told; give z0, zeros of that shape"
        )
    refuse_float16(x.dtype, "x", way_out)
    return torch.zeros_like(x, memory_format=torch.contiguous_format).detach()


@dataclass(frozen=True, slots=True)
class _RandomNumbers:
    """Where torch's generators stood when a call began."""

    cpu: Tensor
    device: torch.device
    accelerator: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> _RandomNumbers:
        on_gpu = device.type == "cuda"
        state = torch.cuda.get_rng_state(device) if on_gpu else None
        return cls(torch.get_rng_state(), device, state)

    def replay(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.cuda.set_rng_state(self.accelerator, self.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """f with everything but z filled in.

    Args:
        f, inject: of the layer.
        x, args, kwargs: of the call.
        like: a tensor of the shape and number format of z.
        random: what every evaluation sees of the generators, or None.
    """

    f: Callable[..., Tensor]
    inject: Inject
    x: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    like: Tensor
    random: _RandomNumbers | None

    def __call__(self, z: Tensor) -> Tensor:
        """f of z, of its shape and number format."""
        if self.random is not None:
            self.random.replay()
        version = version_of(z)
        # in inference mode torch does not count, and f may write into what nobody needs
        given = self._given(z.clone() if version is None else z)
        try:
            image = self.f(*given, *self.args, **self.kwargs)
        except TypeError as error:
            self._check_signature(given, error)
            raise
        if version_of(z) != version:
            raise UserError(
                "f writes into the z that it is given, which the solver still needs; leave out "
                "inplace=True, or let f begin with z = z.clone()"
            )
        image = image + self.x if self.inject == "add" else image
        if not isinstance(image, Tensor) or image.shape != z.shape:
            found = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise UserError(
                f"f makes {found} of a z of shape {list(z.shape)}; a fixed point needs the same "
                "shape, give a z0 of the output's shape or change f"
            )
        return image.to(z.dtype)

    def _given(self, z: Tensor) -> tuple[Any, ...]:
        if self.inject == "argument":
            return z, self.x
        return (z,) if self.inject == "add" else ((z, self.x),)

    def _check_signature(self, given: Sequence[Any], error: TypeError) -> None:
        """Say it in one line if f cannot be called like this at all."""
        target = self.f.forward if isinstance(self.f, nn.Module) else self.f
        signature = inspect.signature(target)
        try:
            signature.bind(*given, *self.args, **self.kwargs)
        except TypeError:
            form = {"argument": "f(z, x, ...)", "add": "f(z, ...) + x", "pair": "f((z, x), ...)"}
            raise UserError(
                f"the map is called as {form[self.inject]} with {len(self.args)} more arguments "
                f"and f takes {signature}; choose another inject or wrap f in a module"
            ) from error

    def step(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        """As a map of the solvers, [O, D] in and out."""
        _refuse(rider)
        return Evaluation(z, self.rows(self(z.view(self.like.shape))))

    def rows(self, z: Tensor) -> Tensor:
        """z as [O, D], contiguous."""
        shape = self.like.shape
        size = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
        return z.reshape(size).contiguous()

    def asks_for_gradient(self) -> bool:
        """Whether a parameter or an argument is known to want one."""
        return any(tensor.requires_grad for tensor in self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        if isinstance(self.f, nn.Module):
            yield from self.f.parameters()
        leaves = pytree.tree_leaves((self.x, self.args, self.kwargs))
        yield from (leaf for leaf in leaves if isinstance(leaf, Tensor))


@dataclass(frozen=True, slots=True, eq=False)
class _Adjoint:
    """The map of the backward solve: v -> J'v + g.

    Args:
        point: z*, which the evaluation was recorded from.
        image: f(z*).
        incoming: g [O, D].
    """

    point: Tensor
    image: Tensor
    incoming: Tensor

    def step(self, z: Tensor, rider: Tensor | None) -> Evaluation:
        """One application to v = ``z``, [O, D] in and out."""
        _refuse(rider)
        turned = z.view(self.image.shape)
        with torch.enable_grad():
            products: Sequence[Tensor | None] = torch.autograd.grad(
                self.image, self.point, turned, retain_graph=True, allow_unused=True
            )
        product = products[0]
        if product is None:  # f does not read z
            return Evaluation(z, self.incoming.clone())
        return Evaluation(z, product.reshape(z.shape) + self.incoming)


def _refuse(rider: Tensor | None) -> None:
    if rider is not None:
        raise UserError(
            "the solver reads the neighbours of a graph, which FixedPoint knows nothing of; take "
            "one whose network is mlp, tcn, gru or table, or anderson"
        )


class _Implicit(torch.autograd.Function):
    """The image as it is; what goes back to it is v instead of g."""

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: Callable[[Tensor, Tensor, Tensor], Tensor],
        point: Tensor,
        image: Tensor,
    ) -> Tensor:
        ctx.adjoint = adjoint
        ctx.save_for_backward(point, image)
        return image.clone()  # so that the user may write into it

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        point, image = ctx.saved_tensors
        return None, None, ctx.adjoint(point, image, grad)
