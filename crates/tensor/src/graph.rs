//! The graph: what a tensor was made of, and the one walk back through it.
//!
//! A node holds its inputs' nodes, so whoever holds a tensor holds its graph. A gradient is handed on as it is, added only where a
//! tensor was used twice, and computed only where it leads to a tensor that is asked for.

use super::meta::Block;
use super::{Array, DType, Tensor, interrupt, raw};
use amscript_base::error::Result;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// From the gradient of a node's output and, per input, whether its gradient is wanted: one optional gradient per input (none: zero).
pub(super) type Backward = dyn Fn(&Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// What a tensor was made of.
pub(super) struct Node {
    /// Nodes made later have greater numbers.
    number: u64,
    /// Per input: none if it is a constant.
    inputs: Vec<Option<Arc<Node>>>,
    /// None: a variable.
    backward: Option<Box<Backward>>,
    /// Whether the numbers are those of a parameter, which an optimizer changes in place.
    pub(super) shared: bool,
}

impl Node {
    fn new(inputs: Vec<Option<Arc<Node>>>, backward: Option<Box<Backward>>, shared: bool) -> Arc<Self> {
        // Only ever counts up, so that hosts beside each other do not matter to one another.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self { number: COUNT.fetch_add(1, Ordering::Relaxed), inputs, backward, shared })
    }

    /// What a variable is; `shared` with an optimizer.
    pub(super) fn leaf(shared: bool) -> Arc<Self> {
        Self::new(Vec::new(), None, shared)
    }

    /// What `inputs` were made into; none where all are constants.
    pub(super) fn made_of(
        inputs: &[Option<&Tensor>],
        shared: bool,
        backward: impl Fn(&Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
    ) -> Option<Arc<Self>> {
        let inputs: Vec<_> = inputs.iter().map(|x| x.and_then(|x| x.node.clone())).collect();
        inputs.iter().any(Option::is_some).then(|| Self::new(inputs, Some(Box::new(backward)), shared))
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.backward.is_none()
    }
}

/// Without recursion, so that the length of a graph is no matter of the stack.
impl Drop for Node {
    fn drop(&mut self) {
        let mut open: Vec<Arc<Node>> = std::mem::take(&mut self.inputs).into_iter().flatten().collect();
        while let Some(node) = open.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                open.extend(std::mem::take(&mut node.inputs).into_iter().flatten());
            }
        }
    }
}

/// Gradients of `sum(output * seed)` for each of `wanted` (none: it does not depend on that one), without a graph of their own.
pub(super) fn walk(output: &Tensor, seed: &Tensor, wanted: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
    let nodes = reached(output);
    // What leads to a wanted tensor, inputs first.
    let number = |x: &Tensor| x.node.as_ref().map(|node| node.number);
    let mut useful: HashSet<u64> = wanted.iter().filter_map(number).collect();
    let asked = |node: &Node, useful: &HashSet<u64>| -> Vec<bool> {
        node.inputs.iter().map(|x| x.as_ref().is_some_and(|x| useful.contains(&x.number))).collect()
    };
    for node in nodes.values() {
        if asked(node, &useful).contains(&true) {
            useful.insert(node.number);
        }
    }
    let mut gradients = HashMap::new();
    gradients.extend(number(output).map(|n| (n, Sum { value: seed.constant(), own: false })));
    let kept: HashSet<u64> = wanted.iter().filter_map(number).collect();
    for node in nodes.values().rev() {
        let asked = asked(node, &useful);
        let (Some(backward), true) = (&node.backward, asked.contains(&true)) else { continue };
        let gradient = match kept.contains(&node.number) {
            true => gradients.get(&node.number).map(|sum: &Sum| sum.value.clone()),
            false => gradients.remove(&node.number).map(|sum| sum.value),
        };
        let Some(gradient) = gradient else { continue };
        interrupt::check()?;
        let found = backward(&gradient, &asked)?;
        drop(gradient);
        for ((gradient, source), asked) in found.into_iter().zip(&node.inputs).zip(asked) {
            if let (Some(gradient), Some(source), true) = (gradient, source, asked) {
                let sum = match gradients.remove(&source.number) {
                    None => Sum { value: gradient.constant(), own: false },
                    Some(sum) => sum.and(&gradient)?,
                };
                gradients.insert(source.number, sum);
            }
        }
    }
    Ok(wanted.iter().map(|x| gradients.get(&number(x)?).map(|sum| sum.value.clone())).collect())
}

/// The nodes that lead to `output`, by number.
fn reached(output: &Tensor) -> BTreeMap<u64, &Node> {
    let mut nodes = BTreeMap::new();
    let mut open: Vec<&Node> = output.node.as_deref().into_iter().collect();
    while let Some(node) = open.pop() {
        if nodes.insert(node.number, node).is_none() {
            open.extend(node.inputs.iter().flatten().map(Arc::as_ref));
        }
    }
    nodes
}

/// A gradient so far, and whether its storage is the walk's own.
struct Sum {
    value: Tensor,
    own: bool,
}

impl Sum {
    fn and(self, other: &Tensor) -> Result<Self> {
        let (a, b) = (&self.value.value, &other.value);
        if let Some(block) = self.value.meta.as_ref().or(other.meta.as_ref()) {
            let value = if self.own { self.value } else { Tensor::meta(a.dims(), a.dtype(), &block.trace)? };
            return Ok(Self { value, own: true });
        }
        let on_cpu = a.device().is_cpu() && matches!(a.dtype(), DType::F32 | DType::F64) && a.dtype() == b.dtype();
        match self.own && on_cpu {
            true => raw::add_to(a, b)?,
            false => return Ok(Self { value: Tensor::constant_of(raw::combine(a, 1.0, b, 1.0)?), own: true }),
        }
        Ok(self)
    }
}

impl Tensor {
    /// The same numbers without a graph, in the same memory: those of a parameter change when it is trained ([`Tensor::detach`] copies).
    pub fn constant(&self) -> Tensor {
        Tensor { node: None, ..self.clone() }
    }

    pub(super) fn constant_of(value: Array) -> Tensor {
        Tensor { value, node: None, meta: None }
    }

    pub(super) fn with(value: Array, node: Option<Arc<Node>>, meta: Option<Arc<Block>>) -> Tensor {
        Tensor { value, node, meta }
    }
}
