from tff_perfedavg.optimization.adaptation import Adaptation as Adaptation
from tff_perfedavg.optimization.config import AdaptationConfig as AdaptationConfig
from tff_perfedavg.optimization.gradients import differentiable as differentiable
from tff_perfedavg.optimization.gradients import global_norm as global_norm
from tff_perfedavg.optimization.gradients import gradient as gradient
from tff_perfedavg.optimization.gradients import loss_and_gradient as loss_and_gradient
from tff_perfedavg.optimization.gradients import subtract as subtract
from tff_perfedavg.optimization.hessian import HessianProduct as HessianProduct
from tff_perfedavg.optimization.hessian import exact as exact
from tff_perfedavg.optimization.hessian import first_order as first_order
from tff_perfedavg.optimization.hessian import hessian_free as hessian_free
from tff_perfedavg.optimization.inner_steps import MetaGradient as MetaGradient
from tff_perfedavg.optimization.inner_steps import meta_gradient as meta_gradient
from tff_perfedavg.optimization.local_algorithm import LocalAlgorithm as LocalAlgorithm
from tff_perfedavg.optimization.local_algorithm import (
    with_adaptation_gain as with_adaptation_gain,
)
from tff_perfedavg.optimization.update_transforms import clip_update as clip_update
