//! The way of a batch through a transformer: an [`embedding`](crate::model::embedding) and a
//! [`layer`](crate::model::layer) only say what happens to rows.
//!
//! ```text
//! blocks of rows   embed → project ┐         ┌ attend → finish → project ┐         ┌ attend → finish → norm →
//! all rows                         └ remember                            └ remember
//! ```
//!
//! Once the keys and values of all rows are laid out, a block of rows is on its own up to those of the next layer,
//! so that is one [`Ops::each`]: each operation reads what is still in the cache. Between two blocks a forward can
//! pause ([`steps`](crate::model::steps)).
//!
//! Of a layer with experts a block of rows is on its own up to their router, and again after them: in between all rows of a
//! batch go through each expert together ([`experts`](crate::model::experts)).
//!
//! # Only what pooling reads
//!
//! Most heads read one row of each sequence. Of the last layer that takes the keys and values of all rows, and
//! queries, MLP and norm of the wanted ones only.

use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use crate::model::experts::Experts;
use crate::model::experts::Group;
use crate::model::norm::Norm;
use crate::model::rope::RopeTable;
use crate::model::routing::Choice;
use crate::model::steps::Steps;
use crate::model::weights::Identified;
use crate::ops::AttentionSpec;
use crate::ops::Convolution;
use crate::ops::Delta;
use crate::ops::Distance;
use crate::ops::Ops;
use crate::ops::Term;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Segment;
use crate::ops::error::Result;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;

/// Tokens → hidden states.
pub trait Embedding<O: Ops>: Debug + Send + Sync {
    /// For each table the row that each token takes, `[tables][rows]`.
    fn ids<'a>(&self, batch: &'a PackedBatch) -> Vec<Cow<'a, [u32]>>;
    /// Hidden states of some rows of a batch, whose [inputs](Inputs::ids) have those ids.
    fn forward(&self, ops: &O, batch: &O::Batch<'_>, which: &Which) -> Result<O::Rows>;
}

/// What [`Layer::project`] makes first.
pub const QUERIES: usize = 0;
/// Then.
pub const KEYS: usize = 1;
/// Last.
pub const VALUES: usize = 2;

/// One layer: what happens to rows before attention, and after. `which` says what rows of the batch they are.
pub trait Layer<O: Ops>: Debug + Send + Sync {
    /// What attention does; `None` where the layer has a [gated delta rule](Self::delta), which sees what is before a token alone.
    fn spec(&self) -> Option<&AttentionSpec>;
    /// Multiplications for one row, but for those of attention and [experts](Self::experts).
    fn products(&self) -> usize;
    /// What rows go through between attention and the end of the layer, beside others of the batch.
    fn experts(&self) -> Option<&Experts<O>> {
        None
    }
    /// What the projections read.
    fn input<'a>(&self, ops: &O, x: &'a O::Rows) -> Result<Cow<'a, O::Rows>>;
    /// Of [`QUERIES`], [`KEYS`] and [`VALUES`] some that follow each other: `[rows, heads · head_dim]`, `[rows, kv_heads ·
    /// head_dim]` and `[rows, kv_heads · value_dim]`.
    fn project(
        &self,
        ops: &O,
        input: &O::Rows,
        batch: &O::Batch<'_>,
        which: &Which,
        parts: Range<usize>,
    ) -> Result<Vec<O::Rows>>;
    /// What the layer has in the place of attention, if it has: of the queries, keys and values of all rows.
    fn delta(&self) -> Option<&Delta<O>> {
        None
    }
    /// What that reads beside them: how much each row learns, and how much it forgets.
    fn delta_gates(&self, ops: &O, input: &O::Rows) -> Result<Option<[O::Rows; 2]>> {
        let _ = (ops, input);
        Ok(None)
    }
    /// Parameters that attention takes by distance, if it does.
    fn by_distance(&self, ops: &O) -> Result<Option<Arc<O::ByDistance>>> {
        let _ = ops;
        Ok(None)
    }
    /// What weighs in the softmax beside keys, if anything does.
    fn sinks(&self) -> Option<&O::Vector> {
        None
    }
    /// What is done beside attention and MLP with the layer's input and its neighbours, if anything is.
    fn convolution(&self) -> Option<&Convolution<O>> {
        None
    }
    /// From attention's output, and the convolution's, to the layer's; or, where it has experts, to what they read.
    fn finish(
        &self,
        ops: &O,
        x: O::Rows,
        attended: &O::Rows,
        convolved: Option<O::Rows>,
    ) -> Result<Finished<O::Rows>>;
    /// From what experts made of rows, and [what they are added to](Routed::x), to the layer's output.
    fn add_experts(&self, ops: &O, x: O::Rows, made: O::Rows) -> Result<O::Rows> {
        ops.add(x, &made)
    }
}

/// How far a layer has come with some rows.
pub enum Finished<R> {
    /// To its end.
    Whole(R),
    /// To its experts.
    Routed(Routed<R>),
}

/// Rows before the experts of a layer.
pub struct Routed<R> {
    /// What experts' outputs are added to.
    pub x: R,
    /// What experts read.
    pub input: R,
    /// See [`Experts::choose`].
    pub choices: Vec<Choice>,
}

/// The rows whose hidden states somebody reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of the batch.
    All,
    /// These, in this order.
    Rows(Vec<usize>),
}

/// A transformer without its head.
#[derive(Debug)]
pub struct Transformer<O: Ops> {
    /// Tokens → hidden states; what its identity tells of includes the ropes.
    pub embedding: Identified<Box<dyn Embedding<O>>>,
    /// Rotary position embeddings, which layers know by their index.
    pub ropes: Vec<RopeTable>,
    /// In order, never empty.
    pub layers: Vec<Identified<Box<dyn Layer<O>>>>,
    /// Columns of the hidden states between them.
    pub width: usize,
    /// After the last layer.
    pub end: Identified<End<O>>,
}

/// What happens to hidden states after the last layer.
#[derive(Debug)]
pub struct End<O: Ops> {
    /// First.
    pub norm: Option<Norm<O>>,
    /// Then.
    pub projection: Option<Arc<O::Linear>>,
}

impl<O: Ops> End<O> {
    fn forward(&self, ops: &O, mut x: O::Rows) -> Result<O::Rows> {
        if let Some(norm) = &self.norm {
            x = norm.forward(ops, &x)?;
        }
        match &self.projection {
            Some(projection) => ops.linear(&x, projection),
            None => Ok(x),
        }
    }
}

impl<O: Ops> Transformer<O> {
    /// Multiplications for one row in all layers, but for those of attention.
    fn products(&self) -> usize {
        let of_experts = |layer: &dyn Layer<O>| layer.experts().map_or(0, Experts::products);
        let of_layers = self.layers.iter().map(|layer| layer.part.products() + of_experts(&*layer.part));
        of_layers.sum::<usize>().max(1)
    }

    /// Whether a token's hidden state depends on the tokens before it alone, in sequences of up to `longest` tokens.
    pub fn shares_prefixes(&self, longest: usize) -> bool {
        let is_causal = self.layers.iter().all(|layer| layer.part.spec().is_none_or(|spec| spec.causal));
        is_causal && !self.ropes.iter().any(|rope| rope.depends_on_length(longest))
    }
}

/// A batch on its way through models with one embedding.
pub struct BatchPass<'a, 'p, O: Ops> {
    /// The form of the operations.
    pub ops: &'a O,
    /// What passes.
    pub inputs: &'a Inputs<'p>,
    /// The same as the form has it.
    pub batch: &'a O::Batch<'p>,
    /// How the rows of the batch are cut.
    pub blocks: Vec<Range<usize>>,
}

/// How the rows of a batch are cut: such that blocks take about the same time, or, in steps, that each is a small part of
/// one.
pub fn blocks<O: Ops>(
    ops: &O,
    model: &Transformer<O>,
    batch: &PackedBatch,
    steps: &Steps<'_>,
) -> Vec<Range<usize>> {
    /// Of a block, however much attention weighs: fewer waste the vector units.
    const MIN_ROWS: usize = 16;
    /// Of a block without attention, however many threads there are.
    const ENOUGH_ROWS: usize = 64;
    let Some(at_once) = ops.at_once() else {
        return ops.blocks(batch.num_rows());
    };
    let Some(max_tokens) = steps.max_tokens() else {
        return ops.even_blocks(&costs(model, batch));
    };
    let longest = (0..batch.len()).map(|sequence| batch.length(sequence)).max().unwrap_or(0);
    // of the last row, in the layer where that is most
    let work = |layer: &Identified<Box<dyn Layer<O>>>| {
        let products = layer.part.products().max(1);
        let of_attention = layer.part.spec().map_or(0, |spec| attention_work(spec, longest));
        (products + of_attention, products)
    };
    let (work, products) = model.layers.iter().map(work).max().unwrap_or((1, 1));
    let of_block = (max_tokens.saturating_mul(model.products()) / at_once).max(ENOUGH_ROWS * products);
    let max_rows = of_block / work / MIN_ROWS * MIN_ROWS;
    ops.small_blocks(batch.num_rows(), max_rows.max(MIN_ROWS))
}

/// Multiplications of each row of a batch in all layers, but for those of experts.
fn costs<O: Ops>(model: &Transformer<O>, batch: &PackedBatch) -> Vec<usize> {
    let products = model.layers.iter().map(|layer| layer.part.products()).sum::<usize>();
    let mut specs: Vec<(&AttentionSpec, usize)> = Vec::new();
    for spec in model.layers.iter().filter_map(|layer| layer.part.spec()) {
        match specs.iter_mut().find(|(known, _)| *known == spec) {
            Some((_, layers)) => *layers += 1,
            None => specs.push((spec, 1)),
        }
    }
    let of_row = |segment: &Segment, row: usize| {
        let of_specs = specs.iter().map(|(spec, layers)| layers * work_of_row(spec, segment, row));
        products + of_specs.sum::<usize>()
    };
    let of_segment =
        |segment: &Segment| segment.rows.clone().map(|row| of_row(segment, row)).collect::<Vec<_>>();
    batch.segments().iter().flat_map(of_segment).collect()
}

/// Those of attention in one layer.
fn work_of_row(spec: &AttentionSpec, segment: &Segment, row: usize) -> usize {
    attention_work(spec, if spec.causal { segment.position(row) + 1 } else { segment.end_position() })
}

/// Multiplications of a query with so many keys before it, itself included.
fn attention_work(spec: &AttentionSpec, keys: usize) -> usize {
    /// What a softmax weight takes, in multiplications of a product.
    const SOFTMAX: usize = 32;
    let reach = |window: usize| if spec.causal { window } else { 2 * window - 1 };
    let keys = spec.window.map_or(keys, |window| reach(window).min(keys));
    // twice as much again for rows of tables, queries' and keys'
    let products = if let Distance::Buckets(_) = spec.distance { 3 } else { 1 };
    spec.heads * (products * spec.head_dim + spec.value_dim + SOFTMAX) * keys
}

/// What the layers of a run begin with.
#[derive(Clone)]
pub enum Start<R> {
    /// The embedding.
    Tokens,
    /// The hidden states of all rows after the layer before, in blocks.
    Hidden(Vec<R>),
}

/// What attention reads of a block.
struct Projected<R> {
    /// Absent where only some rows ask.
    query: Option<R>,
    key: R,
    value: R,
    /// See [`Layer::delta_gates`].
    gates: Option<[R; 2]>,
}

/// What queries of a layer read.
enum Memory<'a, O: Ops> {
    /// Keys and values.
    Kept(O::Remembered<'a>),
    /// What all rows have read already.
    Read(Vec<O::Rows>),
}

/// How far rows have come.
enum Reached<R> {
    /// After a layer, or to the next one's attention.
    Next((R, Option<Projected<R>>)),
    /// To the experts of a layer, with their places.
    Experts(Routed<R>, Range<usize>),
}

/// Rows on their way from one attention to the next.
struct Going<R> {
    x: R,
    /// Absent where only some rows ask.
    query: Option<R>,
    /// Where they are among those that ask.
    places: Range<usize>,
}

impl<O: Ops> BatchPass<'_, '_, O> {
    /// [`Ops::each`] in steps. `work` counts multiplications.
    fn each<A: Send, B: Send>(
        &self,
        steps: &mut Steps<'_>,
        max_work: usize,
        items: Vec<A>,
        work: impl Fn(&A) -> usize,
        f: impl Fn(A) -> Result<B> + Sync,
    ) -> Result<Vec<B>> {
        if steps.max_tokens().is_none() {
            return self.ops.each(items, f);
        }
        let at_once = self.ops.at_once().unwrap_or(1);
        let mut results = Vec::with_capacity(items.len());
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            let (mut step, mut of_step) = (Vec::new(), 0);
            while let Some(item) =
                items.next_if(|item| step.len() < at_once || of_step + work(item) <= max_work)
            {
                of_step += work(&item);
                step.push(item);
            }
            results.extend(self.ops.each(step, &f)?);
            steps.pause()?;
        }
        Ok(results)
    }

    /// Multiplications of a layer for some rows.
    fn work(&self, layer: &dyn Layer<O>, rows: usize, first: usize, last: usize) -> usize {
        let of_row = |row: usize| {
            let packed = self.inputs.packed;
            let of_spec = |spec| work_of_row(spec, &packed.segments()[packed.segment_of(row)], row);
            layer.spec().map_or(0, of_spec)
        };
        rows * (layer.products() + of_row(first).max(of_row(last)))
    }

    /// Hidden states of all rows before the first layer, in blocks.
    pub fn embed(&self, model: &Transformer<O>) -> Result<Vec<O::Rows>> {
        self.ops.each(self.blocks.clone(), |rows| self.embed_block(model, rows))
    }

    fn embed_block(&self, model: &Transformer<O>, rows: Range<usize>) -> Result<O::Rows> {
        model.embedding.part.forward(self.ops, self.batch, &Which::Run(rows))
    }

    /// What attention of a layer reads of a block of rows. Of the last layer only the rows of a list ask, if there is
    /// one.
    fn project(
        &self,
        model: &Transformer<O>,
        list: Option<usize>,
        depth: usize,
        x: &O::Rows,
        rows: &Range<usize>,
    ) -> Result<Projected<O::Rows>> {
        let layer = &model.layers[depth].part;
        let all_ask = depth + 1 < model.layers.len() || list.is_none() || layer.delta().is_some();
        let input = layer.input(self.ops, x)?;
        let which = Which::Run(rows.clone());
        let first = if all_ask { QUERIES } else { KEYS };
        let mut parts = layer.project(self.ops, &input, self.batch, &which, first..VALUES + 1)?.into_iter();
        let query = if all_ask { parts.next() } else { None };
        let mut next = || parts.next().expect("as many as were asked for");
        let gates = layer.delta_gates(self.ops, &input)?;
        Ok(Projected { query, key: next(), value: next(), gates })
    }

    /// Some layers of a model, from a start to the hidden states after the last of them; if that is the model's last, of
    /// the rows of a [list](Inputs::lists) or else of all, and what its [`End`] makes of them.
    pub fn run(
        &self,
        model: &Transformer<O>,
        list: Option<usize>,
        layers: Range<usize>,
        start: Start<O::Rows>,
        steps: &mut Steps<'_>,
    ) -> Result<Vec<O::Rows>> {
        let ops = self.ops;
        let max_work = steps.max_tokens().unwrap_or(usize::MAX).saturating_mul(model.products());
        let begin = |x: O::Rows, rows: &Range<usize>| {
            let projected = self.project(model, list, layers.start, &x, rows)?;
            Ok((x, Some(projected)))
        };
        let blocks = self.blocks.clone();
        let work = |rows: &Range<usize>| rows.len() * model.layers[layers.start].part.products();
        let mut states = match start {
            Start::Tokens => {
                let begin = |rows: Range<usize>| begin(self.embed_block(model, rows.clone())?, &rows);
                self.each(steps, max_work, blocks, work, begin)?
            }
            Start::Hidden(x) => {
                let blocks = x.into_iter().zip(blocks).collect();
                let work = |(_, rows): &(O::Rows, Range<usize>)| work(rows);
                self.each(steps, max_work, blocks, work, |(x, rows)| begin(x, &rows))?
            }
        };
        for depth in layers.clone() {
            let layer = &model.layers[depth].part;
            let is_last = depth + 1 == model.layers.len();
            let (mut going, mut keys, mut values) = (vec![], vec![], vec![]);
            // of a gated delta rule
            let (mut queries, mut learned, mut forgotten) = (vec![], vec![], vec![]);
            for ((x, projected), places) in states.into_iter().zip(self.blocks.iter().cloned()) {
                let Projected { mut query, key, value, gates } =
                    projected.expect("projected for each of the layers");
                if let Some([learn, forget]) = gates {
                    queries.extend(query.take());
                    learned.push(learn);
                    forgotten.push(forget);
                }
                going.push(Going { x, query, places });
                keys.push(key);
                values.push(value);
            }
            let convolution = layer.convolution().map(|layer| {
                let inputs: Vec<O::Rows> = going.iter().map(|going| going.x.clone()).collect();
                (layer, inputs)
            });
            let asking = match list {
                Some(list) if is_last => {
                    let x: Vec<O::Rows> = going.into_iter().map(|going| going.x).collect();
                    let asking = self.inputs.listed(list);
                    let x = ops.gather(&x, list, self.batch)?.into_iter().zip(ops.blocks(asking.len()));
                    going = x.map(|(x, places)| Going { x, query: None, places }).collect();
                    asking
                }
                _ => Which::Run(0..self.inputs.packed.num_rows()),
            };
            let by_distance = layer.by_distance(ops)?;
            let memory: Memory<'_, O> = if let Some(delta) = layer.delta() {
                let read = ops.delta([queries, keys, values], [learned, forgotten], delta, self.batch)?;
                Memory::Read(read)
            } else {
                let spec = layer.spec().expect("a layer without a delta rule attends");
                let mut memory = ops.remember(keys, values, by_distance.as_deref(), self.batch, spec)?;
                if let Some(sinks) = layer.sinks() {
                    memory = ops.with_sinks(memory, sinks)?;
                }
                Memory::Kept(memory)
            };
            let work = |going: &Going<O::Rows>| {
                let Range { start, end } = going.places;
                let row = |place: usize| self.inputs.row(&asking, place);
                self.work(&**layer, end - start, row(start), row(end - 1))
            };
            let go_on = |x: O::Rows, places: &Range<usize>| {
                if is_last {
                    return Ok((model.end.part.forward(ops, x)?, None));
                }
                if depth + 1 == layers.end {
                    return Ok((x, None));
                }
                let projected = self.project(model, list, depth + 1, &x, places)?;
                Ok((x, Some(projected)))
            };
            let reached = self.each(steps, max_work, going, work, |Going { x, query, places }| {
                let which = asking.part(places.clone());
                let attended = match &memory {
                    Memory::Read(read) => ops.pick(read, &self.inputs.rows(&which).collect::<Vec<_>>())?,
                    Memory::Kept(memory) => {
                        let query = match query {
                            Some(query) => query,
                            None => {
                                let input = layer.input(ops, &x)?;
                                layer.project(ops, &input, self.batch, &which, QUERIES..KEYS)?.remove(0)
                            }
                        };
                        ops.attend(&query, &which, memory)?
                    }
                };
                let convolve = |(layer, inputs): &(&Convolution<O>, Vec<O::Rows>)| {
                    ops.convolve(inputs, &which, layer, self.batch)
                };
                let convolved = convolution.as_ref().map(convolve).transpose()?;
                Ok(match layer.finish(ops, x, &attended, convolved)? {
                    Finished::Whole(x) => Reached::Next(go_on(x, &places)?),
                    Finished::Routed(routed) => Reached::Experts(routed, places),
                })
            })?;
            states = Vec::with_capacity(reached.len());
            let mut routed = Vec::new();
            for reached in reached {
                match reached {
                    Reached::Next(state) => states.push(state),
                    Reached::Experts(block, places) => routed.push((block, places)),
                }
            }
            if let Some(experts) = layer.experts() {
                states = self.through_experts(steps, max_work, (&**layer, experts), routed, &go_on)?;
            }
        }
        Ok(states.into_iter().map(|(x, _)| x).collect())
    }
    /// Takes blocks through the experts that their rows chose, and on from there: `go_on` is given a block
    /// after the layer, and its places.
    fn through_experts<B: Send>(
        &self,
        steps: &mut Steps<'_>,
        max_work: usize,
        (layer, experts): (&dyn Layer<O>, &Experts<O>),
        routed: Vec<(Routed<O::Rows>, Range<usize>)>,
        go_on: &(impl Fn(O::Rows, &Range<usize>) -> Result<B> + Sync),
    ) -> Result<Vec<B>> {
        /// Outputs of experts that are in memory at a time, in rows: of 2048 columns 128 MiB.
        const MAX_OUTPUTS: usize = 1 << 14;
        let (ops, of_row) = (self.ops, experts.of_row());
        let mut results = Vec::with_capacity(routed.len());
        let mut routed = routed.into_iter().peekable();
        while routed.peek().is_some() {
            let (mut going, mut inputs, mut choices) = (Vec::new(), Vec::new(), Vec::new());
            while let Some((block, places)) = routed
                .next_if(|(block, _)| going.is_empty() || choices.len() + block.choices.len() <= MAX_OUTPUTS)
            {
                choices.extend(block.choices);
                inputs.push(block.input);
                going.push((block.x, places));
            }
            let (groups, terms) = experts.assign(&choices);
            let work = |group: &Group| group.rows.len() * experts.products_of(group.expert);
            let made = self.each(steps, max_work, groups, work, |Group { expert, rows }| {
                experts.forward(ops, expert, &ops.pick(&inputs, &rows)?)
            })?;
            drop(inputs);
            let mut terms = &terms[..];
            let with_terms = |(x, places): (O::Rows, Range<usize>)| {
                let (of_block, rest) = terms.split_at(places.len() * of_row);
                terms = rest;
                (x, of_block, places)
            };
            let going = going.into_iter().map(with_terms).collect();
            // about what the next layer takes up to its attention
            let work = |(_, _, places): &(O::Rows, &[Term], Range<usize>)| places.len() * layer.products();
            results.extend(self.each(steps, max_work, going, work, |(x, terms, places)| {
                let made = ops.combine(&made, terms, of_row)?;
                go_on(layer.add_experts(ops, x, made)?, &places)
            })?);
        }
        Ok(results)
    }
}
