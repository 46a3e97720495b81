//! AdamW: Adam with decoupled weight decay, step for step what `torch.optim.AdamW` computes.
//!
//! Source: Loshchilov & Hutter 2019 (arXiv:1711.05101). Operations run in `f32` in torch's order, so that a step differs
//! from torch's in the last places only; no sum crosses elements, so the number of threads changes nothing.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use candle_core::CpuStorage;
use candle_core::Device;
use candle_core::InplaceOp1;
use candle_core::Layout;
use candle_core::Result;
use candle_core::Storage;
use candle_core::Tensor;
use rayon::prelude::*;

use crate::learn::parameter::Parameter;

/// Elements that one thread takes at a time; norms are summed in pieces of this size, in order.
const CHUNK: usize = 1 << 14;

/// How AdamW steps, but for the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Of the mean of gradients.
    pub beta1: f64,
    /// Of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Times the learning rate, this share of a parameter that [decays](Parameter::decays) is taken off in each step.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    /// torch's, but without decay.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// The optimiser and what it remembers of each parameter.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    steps: u64,
    moments: Vec<Moments>,
}

/// Running means of one parameter's gradients and of their squares.
#[derive(Debug)]
struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// Everything that the next step depends on, beside parameters and gradients.
#[derive(Clone, Debug)]
pub struct AdamWState {
    /// So many steps were made.
    pub steps: u64,
    /// `NAME.exp_avg` and `NAME.exp_avg_sq` of each parameter, as torch calls them.
    pub tensors: HashMap<String, Tensor>,
}

impl AdamW {
    /// Before the first step.
    pub fn new(parameters: &[Parameter], options: AdamWOptions) -> Self {
        let zeros = |parameter: &Parameter| {
            let count = parameter.var.elem_count();
            Moments { mean: vec![0.0; count], square: vec![0.0; count] }
        };
        Self { options, steps: 0, moments: parameters.iter().map(zeros).collect() }
    }

    /// Where another left off. Fails if a parameter's tensors are not there, or of another size.
    pub fn resume(parameters: &[Parameter], options: AdamWOptions, state: &AdamWState) -> Result<Self> {
        let read = |parameter: &Parameter, end: &str| {
            let name = format!("{}.{end}", parameter.name);
            let Some(tensor) = state.tensors.get(&name) else {
                candle_core::bail!("the optimiser's state lacks `{name}`")
            };
            if tensor.dims() != parameter.var.dims() {
                let (found, expected) = (tensor.dims(), parameter.var.dims());
                candle_core::bail!("`{name}` of the optimiser's state is {found:?}, expected {expected:?}")
            }
            tensor.flatten_all()?.to_vec1::<f32>()
        };
        let moments = parameters.iter().map(|parameter| {
            Ok(Moments { mean: read(parameter, "exp_avg")?, square: read(parameter, "exp_avg_sq")? })
        });
        Ok(Self { options, steps: state.steps, moments: moments.collect::<Result<_>>()? })
    }

    /// What [`Self::resume`] goes on from.
    pub fn state(&self, parameters: &[Parameter]) -> Result<AdamWState> {
        let mut tensors = HashMap::new();
        for (parameter, Moments { mean, square }) in parameters.iter().zip(&self.moments) {
            for (end, values) in [("exp_avg", mean), ("exp_avg_sq", square)] {
                let tensor = Tensor::from_slice(values, parameter.var.dims(), &Device::Cpu)?;
                tensors.insert(format!("{}.{end}", parameter.name), tensor);
            }
        }
        Ok(AdamWState { steps: self.steps, tensors })
    }

    /// Changes the parameters in place. Parameters are those of the start; gradients are in their order.
    pub fn step(&mut self, parameters: &[Parameter], gradients: &[Tensor], learning_rate: f64) -> Result<()> {
        if parameters.len() != self.moments.len() || gradients.len() != self.moments.len() {
            let (parameters, gradients, expected) = (parameters.len(), gradients.len(), self.moments.len());
            candle_core::bail!("{parameters} parameters, {gradients} gradients: expected {expected} of each")
        }
        self.steps += 1;
        let AdamWOptions { beta1, beta2, eps, weight_decay } = self.options;
        let steps = self.steps as f64;
        for ((parameter, moments), gradient) in parameters.iter().zip(&mut self.moments).zip(gradients) {
            let decay = if parameter.decays { weight_decay } else { 0.0 };
            let factors = Factors {
                kept: (1.0 - learning_rate * decay) as f32,
                of_mean: (1.0 - beta1) as f32,
                beta2: beta2 as f32,
                of_square: (1.0 - beta2) as f32,
                root: (1.0 - beta2.powf(steps)).sqrt() as f32,
                eps: eps as f32,
                step: (learning_rate / (1.0 - beta1.powf(steps))) as f32,
            };
            let gradient = gradient.contiguous()?;
            parameter.var.inplace_op1(&Step {
                factors,
                gradient: &gradient,
                moments: Mutex::new(moments),
            })?;
        }
        Ok(())
    }
}

/// What a step multiplies with, the same for each element of a parameter.
#[derive(Clone, Copy)]
struct Factors {
    kept: f32,
    of_mean: f32,
    beta2: f32,
    of_square: f32,
    root: f32,
    eps: f32,
    step: f32,
}

/// One parameter's step.
struct Step<'a> {
    factors: Factors,
    gradient: &'a Tensor,
    moments: Mutex<&'a mut Moments>,
}

impl InplaceOp1 for Step<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, values: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a parameter is not contiguous")
        };
        let CpuStorage::F32(values) = values else { candle_core::bail!("a parameter is not f32") };
        let values = &mut values[start..end];
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let Moments { mean, square } = &mut **moments;
        with_values(self.gradient, |gradient| {
            if gradient.len() != values.len() {
                let (found, expected) = (gradient.len(), values.len());
                candle_core::bail!("a gradient has {found} values, its parameter {expected}")
            }
            let Factors { kept, of_mean, beta2, of_square, root, eps, step } = self.factors;
            let chunks = values.par_chunks_mut(CHUNK).zip(mean.par_chunks_mut(CHUNK));
            let chunks = chunks.zip(square.par_chunks_mut(CHUNK)).zip(gradient.par_chunks(CHUNK));
            chunks.for_each(|(((values, mean), square), gradient)| {
                for (((value, mean), square), g) in values.iter_mut().zip(mean).zip(square).zip(gradient) {
                    *mean += of_mean * (g - *mean);
                    *square = beta2 * *square + of_square * g * g;
                    *value = *value * kept - step * (*mean / (square.sqrt() / root + eps));
                }
            });
            Ok(())
        })
    }
}

/// Scales all gradients down such that their norm together is at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` does. Returns the norm before.
pub fn clip_gradients(gradients: &mut [Tensor], max_norm: f64) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients.iter_mut() {
        *gradient = gradient.contiguous()?;
        sum += with_values(gradient, |values| {
            let squares = |chunk: &[f32]| chunk.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
            Ok(values.par_chunks(CHUNK).map(squares).collect::<Vec<f64>>().iter().sum::<f64>())
        })?;
    }
    let norm = sum.sqrt();
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        for gradient in gradients {
            let scaled = with_values(gradient, |values| {
                Ok(values.par_iter().map(|g| g * factor as f32).collect::<Vec<f32>>())
            })?;
            *gradient = Tensor::from_vec(scaled, gradient.dims(), &Device::Cpu)?;
        }
    }
    Ok(norm)
}

/// Reads the values of a contiguous `f32` tensor on the CPU.
pub(super) fn with_values<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!("a tensor is not contiguous, or not on the CPU")
    };
    read(&storage.as_slice::<f32>()?[start..end])
}
