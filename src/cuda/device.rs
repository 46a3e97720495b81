//! A card as forwards see it: memory for weights and for activations, a list of what to do, and results.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::algorithms::Choice;
use crate::algorithms::Scratch;
use crate::algorithms::choose;
use crate::algorithms::scratch_bytes;
use crate::arena::Arena;
use crate::driver::Address;
use crate::driver::Algorithm;
use crate::driver::Argument;
use crate::driver::Card;
use crate::driver::CudaError;
use crate::driver::Driver;
use crate::driver::Number;
use crate::driver::Result;
use crate::driver::Shape;
use crate::driver::Stream;
use crate::matrix::Integers;
use crate::matrix::Matrix;
use crate::matrix::Memory;
use crate::matrix::Retired;
use crate::matrix::stride_of;
use crate::queue::Command;
use crate::queue::Moment;
use crate::queue::Queue;
use crate::queue::STREAM;
use crate::rehearsal::Nothing;

/// Rows of a batch up to which launches weigh more than what they do.
pub const SMALL_BATCH: usize = 1024;

/// Bytes of an arena beyond what is reserved.
const MIN_ARENA: usize = 64 << 20;

/// A card, with memory for the activations of one forward at a time.
#[derive(Debug)]
pub struct Device {
    pub(crate) driver: Arc<dyn Driver>,
    /// The first is what was [reserved](Self::reserve), if anything was; others are of the forward that runs.
    arenas: Mutex<Vec<Arc<Arena>>>,
    is_reserved: AtomicBool,
    retired: Arc<Retired>,
    loading: Loading,
    queue: Mutex<Queue>,
    forwards: Mutex<()>,
    /// Small tables, by what they hold.
    constants: Mutex<HashMap<Vec<u8>, Matrix>>,
    shapes: Mutex<HashMap<Shape, Arc<Shape>>>,
    /// That were launched, if this is a rehearsal.
    kernels: Mutex<Option<BTreeSet<&'static str>>>,
    choices: Mutex<HashMap<Shape, Choice>>,
    /// Of these choices, for numbers of rows that came by.
    algorithms: Mutex<HashMap<(Shape, usize), Arc<Algorithm>>>,
}

/// The way of weights to the card.
#[derive(Debug, Default)]
struct Loading {
    stream: Mutex<Option<Stream>>,
    /// Whether something was copied that no forward has waited for.
    is_behind: AtomicBool,
}

/// What a forward would ask for.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Memory for its activations, in bytes.
    pub bytes: usize,
    /// Its products.
    pub shapes: Vec<Shape>,
    /// Its kernels.
    pub kernels: Vec<&'static str>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// Over a driver.
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self {
            retired: Arc::new(Retired::new(driver.clone())),
            driver,
            arenas: Mutex::default(),
            is_reserved: AtomicBool::new(false),
            loading: Loading::default(),
            queue: Mutex::default(),
            forwards: Mutex::default(),
            constants: Mutex::default(),
            shapes: Mutex::default(),
            kernels: Mutex::default(),
            choices: Mutex::default(),
            algorithms: Mutex::default(),
        }
    }

    /// One that does nothing, to see [what](Self::needs) forwards on this one would ask for.
    pub fn rehearsal(&self) -> Self {
        let device = Self::new(Arc::new(Nothing(self.card().clone())));
        locked(&device.arenas).push(Arc::new(Arena::endless()));
        device.is_reserved.store(true, Ordering::Relaxed);
        *locked(&device.kernels) = Some(BTreeSet::new());
        device
    }

    /// What the forwards of a [rehearsal](Self::rehearsal) asked for.
    pub fn needs(&self) -> Needs {
        let bytes = locked(&self.arenas).first().map_or(0, |arena| arena.peak());
        let kernels = locked(&self.kernels).iter().flatten().copied().collect();
        Needs { bytes, shapes: locked(&self.shapes).keys().copied().collect(), kernels }
    }

    /// What it is.
    pub fn card(&self) -> &Card {
        self.driver.card()
    }

    /// Bytes that are left of its memory.
    pub fn free(&self) -> Result<u64> {
        self.driver.free()
    }

    /// Bytes that are kept for activations.
    pub fn reserved(&self) -> usize {
        let is_reserved = self.is_reserved.load(Ordering::Relaxed);
        locked(&self.arenas).first().filter(|_| is_reserved).map_or(0, |arena| arena.capacity())
    }

    /// Makes sure of the memory that forwards of such needs take, of their kernels, and of the best way to make their products for up to
    /// `rows` rows. Fails if there is not so much memory left.
    pub fn reserve(&self, needs: &Needs, rows: usize) -> Result<()> {
        let _alone = locked(&self.forwards);
        if needs.bytes > self.reserved() {
            let mut arenas = locked(&self.arenas);
            self.is_reserved.store(false, Ordering::Relaxed);
            arenas.clear();
            arenas.push(Arc::new(Arena::of(&self.driver, needs.bytes, "memory for activations")?));
            self.is_reserved.store(true, Ordering::Relaxed);
        }
        // Now, and side by side, instead of one after the other in the first batches.
        self.driver.prepare_all(&needs.kernels)?;
        self.choose(&needs.shapes, rows)
    }

    /// Chooses how products are made, where that is not known yet.
    fn choose(&self, shapes: &[Shape], rows: usize) -> Result<()> {
        let driver = &*self.driver;
        let mut choices = locked(&self.choices);
        let is_known = |shape| choices.get(shape).is_some_and(|choice| choice.covers(driver, rows));
        let shapes: Vec<Shape> = shapes.iter().filter(|shape| !is_known(shape)).copied().collect();
        if shapes.is_empty() {
            return Ok(());
        }
        let bytes = scratch_bytes(&shapes, rows.min(driver.tried_rows()));
        // Where memory is short, fewer rows are tried: in what is reserved.
        let memory = match self.memory(bytes) {
            Err(CudaError::OutOfMemory { .. }) if self.reserved() > 0 => self.memory(self.reserved())?,
            memory => memory?,
        };
        let scratch = Scratch { at: memory.at, bytes: memory.bytes };
        let chosen = choose(driver, STREAM, &shapes, rows, scratch, driver.keeps())?;
        locked(&self.algorithms).clear();
        choices.extend(shapes.into_iter().zip(chosen));
        drop(memory);
        self.shrink();
        Ok(())
    }

    /// Runs a forward, alone on this device.
    pub fn run<R>(&self, forward: impl FnOnce() -> R) -> R {
        let _alone = locked(&self.forwards);
        self.retired.hold();
        locked(&self.queue).begin();
        let result = forward();
        locked(&self.queue).begin();
        self.retired.release();
        self.shrink();
        result
    }

    /// How many batches' sizes are one launch.
    pub fn graphs(&self) -> usize {
        locked(&self.queue).graphs()
    }

    fn memory(&self, bytes: usize) -> Result<Arc<Memory>> {
        let mut arenas = locked(&self.arenas);
        for arena in &*arenas {
            if let Some(at) = arena.take(bytes) {
                return Ok(Arc::new(Memory::of_arena(at, bytes, arena.clone())));
            }
        }
        // a batch that is larger than what was reserved for: a text beyond `max_batch_tokens`, say
        let arena = Arc::new(Arena::of(&self.driver, bytes.max(MIN_ARENA), "the activations of a batch")?);
        arenas.push(arena.clone());
        let at = arena.take(bytes).expect("an arena of at least this size");
        Ok(Arc::new(Memory::of_arena(at, bytes, arena)))
    }

    /// Gives back what a forward took beyond what is reserved.
    fn shrink(&self) {
        let reserved = usize::from(self.is_reserved.load(Ordering::Relaxed));
        locked(&self.arenas).truncate(reserved);
    }

    /// Memory that is not the arena's.
    fn lasting(&self, bytes: usize, what: &str) -> Result<Arc<Memory>> {
        let _nobody_records = self.retired.nobody_records();
        let at = self.driver.allocate(bytes, what)?;
        Ok(Arc::new(Memory::of_weights(at, bytes, self.retired.clone())))
    }

    /// Room for a matrix of a forward, with anything in it.
    pub fn matrix(&self, rows: usize, width: usize, number: Number) -> Result<Matrix> {
        self.matrix_of_stride(rows, width, stride_of(width), number)
    }

    /// The same of `f32`, with nothing between its rows.
    pub fn dense(&self, rows: usize, width: usize) -> Result<Matrix> {
        self.matrix_of_stride(rows, width, width, Number::F32)
    }

    fn matrix_of_stride(&self, rows: usize, width: usize, stride: usize, number: Number) -> Result<Matrix> {
        let memory = self.memory(rows * stride * number.bytes())?;
        Ok(Matrix::new(memory, rows, width, stride, number))
    }

    /// A matrix that stays: weights. `values` are its rows, each of [`stride_of`] `width` numbers.
    pub fn upload(&self, values: &[u8], rows: usize, width: usize, number: Number) -> Result<Matrix> {
        let (stride, bytes) = (stride_of(width), values.len());
        assert_eq!(
            bytes,
            rows * stride * number.bytes(),
            "{rows} rows of {width}, with what is between them"
        );
        let memory = self.lasting(bytes, "weights")?;
        self.load(values, memory.at)?;
        Ok(Matrix::new(memory, rows, width, stride, number))
    }

    /// Copies what stays, while forwards of other models may be recorded on their own stream.
    fn load(&self, values: &[u8], to: Address) -> Result<Stream> {
        let mut stream = locked(&self.loading.stream);
        let stream = match *stream {
            Some(stream) => stream,
            None => *stream.insert(self.driver.stream()?),
        };
        let _nobody_records = self.retired.nobody_records();
        self.driver.upload(stream, values, to)?;
        self.loading.is_behind.store(true, Ordering::Release);
        Ok(stream)
    }

    /// What is asked for from now on waits for what was loaded.
    fn await_loaded(&self) -> Result<()> {
        if self.loading.is_behind.swap(false, Ordering::Acquire)
            && let Some(stream) = *locked(&self.loading.stream)
        {
            self.driver.wait(STREAM, &self.driver.record(stream)?)?;
        }
        Ok(())
    }

    /// A copy that stays, made at once: it may outlive what was listed.
    pub fn keep(&self, x: &Matrix) -> Result<Matrix> {
        let (rows, width, number) = (x.rows(), x.width(), x.number());
        let stride = stride_of(width);
        let memory = self.lasting(rows * stride * number.bytes(), "weights")?;
        let kept = Matrix::new(memory, rows, width, stride, number);
        self.convert_into(x, &kept)?;
        locked(&self.queue).ask(&*self.driver)?;
        Ok(kept)
    }

    /// A small table that stays, one of each kind: `values` are four bytes each.
    pub fn constant(&self, values: &[u8]) -> Result<Matrix> {
        if let Some(known) = locked(&self.constants).get(values) {
            return Ok(known.clone());
        }
        let memory = self.lasting(values.len(), "a table")?;
        let stream = self.load(values, memory.at)?;
        self.driver.synchronize(stream)?;
        let table = Matrix::new(memory, 1, values.len() / 4, values.len() / 4, Number::F32);
        locked(&self.constants).insert(values.to_vec(), table.clone());
        Ok(table)
    }

    /// What a batch is made of, in one go: the `sections`, each at a place of its own. Whatever was asked for before is
    /// asked for before the copy. `rows` is the size of the batch.
    pub fn upload_batch(&self, sections: &[Vec<u8>], rows: usize) -> Result<Vec<Integers>> {
        locked(&self.queue).batch(&*self.driver, rows <= SMALL_BATCH)?;
        let mut blob = Vec::with_capacity(sections.iter().map(|section| section.len() + 256).sum());
        let starts: Vec<usize> = sections
            .iter()
            .map(|section| {
                blob.resize(blob.len().next_multiple_of(256), 0);
                blob.extend_from_slice(section);
                blob.len() - section.len()
            })
            .collect();
        let memory = self.memory(blob.len())?;
        self.driver.upload(STREAM, &blob, memory.at)?;
        let of_section = |(section, start): (&Vec<u8>, usize)| Integers {
            _memory: memory.clone(),
            at: memory.at.after(start),
            count: section.len() / 4,
        };
        Ok(sections.iter().zip(starts).map(of_section).collect())
    }

    /// Lists a launch. Nothing is launched for no rows.
    pub(crate) fn launch(
        &self,
        kernel: &'static str,
        grid: [usize; 3],
        threads: u32,
        arguments: &[Argument],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        if let Some(kernels) = &mut *locked(&self.kernels) {
            kernels.insert(kernel);
        }
        self.await_loaded()?;
        let shared = crate::modules::shared_bytes(kernel);
        let grid = grid.map(|blocks| u32::try_from(blocks).expect("a grid of less than 2^32 blocks"));
        let command = Command::Launch { kernel, grid, threads, shared, arguments: arguments.to_vec() };
        locked(&self.queue).push(&*self.driver, command)
    }

    /// Lists a product.
    pub(crate) fn multiply(
        &self,
        shape: Shape,
        rows: usize,
        [x, weight, bias, y]: [Address; 4],
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let algorithm = self.algorithm(&shape, rows)?;
        let shape = locked(&self.shapes).entry(shape).or_insert_with(|| Arc::new(shape)).clone();
        let command = Command::Multiply { shape, rows, x, weight, bias, y, algorithm };
        locked(&self.queue).push(&*self.driver, command)
    }

    fn algorithm(&self, shape: &Shape, rows: usize) -> Result<Arc<Algorithm>> {
        if let Some(known) = locked(&self.algorithms).get(&(*shape, rows)) {
            return Ok(known.clone());
        }
        let algorithm = match locked(&self.choices).get(shape) {
            Some(choice) => choice.algorithm(&*self.driver, rows)?.clone(),
            // Of a forward that nobody reserved for: the library's best guess.
            None => self.driver.algorithms(shape, rows, 1)?.pop().ok_or_else(|| {
                CudaError::Unsupported(format!("{} cannot make {rows} rows of {shape:?}", self.card().name))
            })?,
        };
        let algorithm = Arc::new(algorithm);
        locked(&self.algorithms).insert((*shape, rows), algorithm.clone());
        Ok(algorithm)
    }

    /// The moment after what was listed until now.
    pub fn moment(&self) -> Result<Moment> {
        locked(&self.queue).mark(&*self.driver)
    }

    /// The values of matrices of `f32`, of each so many rows, in one go. Waits for all that was asked for.
    pub fn read(&self, results: &[(&Matrix, usize)]) -> Result<Vec<Vec<f32>>> {
        let counts: Vec<usize> = results.iter().map(|(matrix, rows)| matrix.width() * rows).collect();
        let places: Vec<usize> = counts
            .iter()
            .scan(0, |at, count| Some(std::mem::replace(at, *at + count.next_multiple_of(8))))
            .collect();
        let total = places.last().zip(counts.last()).map_or(0, |(place, count)| place + count);
        let packed = self.matrix_of_stride(1, total, total, Number::F32)?;
        for (&(matrix, rows), place) in results.iter().zip(places.iter().copied()) {
            self.convert_at(matrix, rows, &packed, place)?;
        }
        let mut values = vec![0f32; total];
        let mut queue = locked(&self.queue);
        queue.flush(&*self.driver, &self.retired.recording)?;
        self.driver.download(STREAM, packed.at(), bytemuck::cast_slice_mut(&mut values))?;
        queue.done(&*self.driver)?;
        Ok(places.iter().zip(counts).map(|(&place, count)| values[place..place + count].to_vec()).collect())
    }
}

#[cfg(all(test, feature = "play"))]
mod tests {
    use super::*;
    use crate::driver::Launch;
    use crate::played::Kernels;
    use crate::played::Play;
    use crate::played::Played;
    use crate::played::Work;

    /// None is launched here.
    struct NoKernels;

    impl Kernels for NoKernels {
        fn prepare(&self, _: &str) -> Result<()> {
            Ok(())
        }

        fn launch(&self, _: &Launch<'_>) -> std::result::Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn what_is_reserved_for_is_made_by_algorithms_that_were_tried() {
        let card = Played::new(Play::new(Arc::new(NoKernels)));
        let device = Device::new(card.clone());
        let shape = Shape {
            outputs: 16,
            inputs: 64,
            x_stride: 64,
            weight_stride: 64,
            y_stride: 16,
            number: Number::Bf16,
            output: Number::Bf16,
            has_bias: true,
            accumulates: false,
        };
        let needs = Needs { bytes: 1 << 16, shapes: vec![shape], kernels: vec!["add_f"] };
        device.reserve(&needs, 32).unwrap();
        let (used, tried) = (card.used(), card.count(Work::Multiply));
        assert!(used < 128 << 10, "{used}: what was tried on is given back");
        let ids =
            |device: &Device| [1, 8, 32, 64, 5000].map(|rows| device.algorithm(&shape, rows).unwrap().0[0]);
        // 13, which is fast at few rows and has other bits there, is not among them.
        assert_eq!(ids(&device), [2, 2, 13, 13, 13]);
        assert_eq!(card.count(Work::Prepare), 1, "the kernel that a rehearsal launched");
        device.reserve(&needs, 32).unwrap();
        assert_eq!((card.used(), card.count(Work::Multiply)), (used, tried), "it is known already");
        device.reserve(&needs, 64).unwrap();
        assert!(card.count(Work::Multiply) > tried, "more rows");
        assert_eq!(ids(&device), [2, 2, 13, 2, 2]);
    }

    #[test]
    fn a_rehearsal_tells_kernels_and_products() {
        let device = Device::new(Played::new(Play::new(Arc::new(NoKernels))));
        let rehearsal = device.rehearsal();
        for _ in 0..2 {
            rehearsal.launch("add_f", [1, 1, 1], 32, &[]).unwrap();
        }
        assert_eq!((rehearsal.needs().kernels, rehearsal.needs().shapes.len()), (vec!["add_f"], 0));
        assert!(device.needs().kernels.is_empty());
    }

    #[test]
    fn where_memory_is_short_fewer_rows_are_tried() {
        let mut play = Play::new(Arc::new(NoKernels));
        play.card.memory = 64 << 10;
        let card = Played::new(play);
        let device = Device::new(card.clone());
        let shape = Shape {
            outputs: 32,
            inputs: 256,
            x_stride: 256,
            weight_stride: 256,
            y_stride: 32,
            number: Number::Bf16,
            output: Number::Bf16,
            has_bias: false,
            accumulates: false,
        };
        device.reserve(&Needs { bytes: 60 << 10, shapes: vec![shape], kernels: vec!["add_f"] }, 128).unwrap();
        assert_eq!(device.algorithm(&shape, 1).unwrap().0[0], 2);
        let short = Device::new(card);
        let error = short.reserve(&Needs { bytes: 60 << 10, ..Needs::default() }, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "memory for activations takes 61440 bytes on a played card, which has 4096 left"
        );
    }
}
