//! A card as forwards see it: memory for weights and for activations, a list of what to do, and results.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use crate::algorithms::Choice;
use crate::algorithms::Scratch;
use crate::algorithms::choose;
use crate::algorithms::scratch_bytes;
use crate::calls::conversion;
use crate::driver::Address;
use crate::driver::Algorithm;
use crate::driver::Argument;
use crate::driver::Card;
use crate::driver::CudaError;
use crate::driver::Driver;
use crate::driver::Event;
use crate::driver::Launch;
use crate::driver::Number;
use crate::driver::Result;
use crate::driver::Shape;
use crate::driver::Stream;
use crate::lanes::Lanes;
use crate::matrix::Integers;
use crate::matrix::Matrix;
use crate::matrix::Memory;
use crate::matrix::Retired;
use crate::matrix::stride_of;
use crate::modules::THREADS;
use crate::queue::Command;
use crate::queue::Moment;
use crate::queue::Queue;
use crate::queue::STREAM;
use crate::rehearsal::Nothing;
use crate::sections::Sections;

/// Rows of a batch up to which launches weigh more than what they do.
pub const SMALL_BATCH: usize = 1024;

/// Bytes of weights that are on the card as they are stored, while they are converted.
const STAGED: usize = 64 << 20;

/// A card, with memory for the activations of one forward at a time.
#[derive(Debug)]
pub struct Device {
    pub(crate) driver: Arc<dyn Driver>,
    lanes: Mutex<Lanes>,
    retired: Arc<Retired>,
    loading: Loading,
    queue: Mutex<Queue>,
    /// Of the batch before, for their memory.
    sections: Mutex<Sections>,
    staging: Mutex<Staging>,
    /// Bytes that a batch is made of: the most that were uploaded.
    largest_batch: AtomicUsize,
    forwards: Mutex<()>,
    /// Small tables, by what they hold.
    constants: Mutex<HashMap<Vec<u8>, Matrix>>,
    shapes: Mutex<HashMap<Shape, Arc<Shape>>>,
    /// That were launched, if this is a rehearsal.
    kernels: Mutex<Option<BTreeSet<&'static str>>>,
    choices: Mutex<HashMap<Shape, Choice>>,
    /// That anybody reserved for.
    most_rows: AtomicUsize,
    /// Of these choices, for numbers of rows that came by.
    algorithms: Mutex<HashMap<(Shape, usize), Arc<Algorithm>>>,
}

/// The way of weights to the card.
#[derive(Debug, Default)]
struct Loading {
    stream: Mutex<Option<Stream>>,
    /// Where they are before they are converted.
    staged: Mutex<Option<Arc<Memory>>>,
    /// Whether something was copied that no forward has waited for.
    is_behind: AtomicBool,
}

/// The way of a batch to the card while it computes another one.
#[derive(Debug, Default)]
struct Staging {
    stream: Option<Stream>,
    memory: Option<Arc<Memory>>,
    /// When the batch that was there before had been copied from there.
    copied: Option<Event>,
}

/// What a batch is made of, where its forward takes it from.
#[derive(Debug)]
pub struct Staged {
    memory: Arc<Memory>,
    places: Vec<Range<usize>>,
    bytes: usize,
    /// When it has arrived.
    arrived: Event,
}

/// What a forward would ask for.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Memory for its activations, in bytes: of what is asked for in order, then of each of the branches beside it.
    pub bytes: Vec<usize>,
    /// Its products.
    pub shapes: Vec<Shape>,
    /// Its kernels.
    pub kernels: Vec<&'static str>,
    /// Memory for what the next batch is made of, in bytes.
    pub staged: usize,
}

fn lists_in(memory: &Arc<Memory>, places: &[Range<usize>]) -> Vec<Integers> {
    let of_section = |place: &Range<usize>| Integers {
        _memory: memory.clone(),
        at: memory.at.after(place.start),
        count: place.len() / 4,
    };
    places.iter().map(of_section).collect()
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
            lanes: Mutex::new(Lanes::new(false)),
            loading: Loading::default(),
            queue: Mutex::default(),
            sections: Mutex::default(),
            staging: Mutex::default(),
            largest_batch: AtomicUsize::new(0),
            forwards: Mutex::default(),
            constants: Mutex::default(),
            shapes: Mutex::default(),
            kernels: Mutex::default(),
            choices: Mutex::default(),
            most_rows: AtomicUsize::new(SMALL_BATCH),
            algorithms: Mutex::default(),
        }
    }

    /// One that does nothing, to see [what](Self::needs) forwards on this one would ask for.
    pub fn rehearsal(&self) -> Self {
        let device = Self::new(Arc::new(Nothing(self.card().clone())));
        *locked(&device.lanes) = Lanes::new(true);
        *locked(&device.kernels) = Some(BTreeSet::new());
        device
    }

    /// What the forwards of a [rehearsal](Self::rehearsal) asked for.
    pub fn needs(&self) -> Needs {
        let bytes = locked(&self.lanes).peaks();
        let kernels = locked(&self.kernels).iter().flatten().copied().collect();
        let shapes = locked(&self.shapes).keys().copied().collect();
        Needs { bytes, shapes, kernels, staged: self.largest_batch.load(Ordering::Relaxed) }
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
        locked(&self.lanes).reserved()
    }

    /// Makes sure of the memory that forwards of such needs take, of their kernels, and of the best way to make their products for up to
    /// `rows` rows. Fails if there is not so much memory left.
    pub fn reserve(&self, needs: &Needs, rows: usize) -> Result<()> {
        let _alone = locked(&self.forwards);
        self.settle();
        // all weights are there
        *locked(&self.loading.staged) = None;
        if needs.staged > 0 {
            self.staging_of(&mut locked(&self.staging), needs.staged)?;
        }
        locked(&self.lanes).reserve(&self.driver, &needs.bytes)?;
        self.most_rows.fetch_max(rows, Ordering::Relaxed);
        // Now, and side by side, instead of one after the other in the first batches.
        self.driver.prepare_all(&needs.kernels)?;
        let reserved = locked(&self.lanes).reserved_first();
        // Where memory is short, fewer rows are tried: in what is reserved.
        self.choose(&needs.shapes, rows, |bytes| match self.memory(bytes) {
            Err(CudaError::OutOfMemory { .. }) if reserved > 0 => self.memory(reserved),
            memory => memory,
        })?;
        locked(&self.lanes).shrink();
        Ok(())
    }

    /// Chooses how products are made, where that is not known yet, in memory of about so many bytes.
    fn choose(
        &self,
        shapes: &[Shape],
        rows: usize,
        room: impl FnOnce(usize) -> Result<Arc<Memory>>,
    ) -> Result<()> {
        let driver = &*self.driver;
        let mut choices = locked(&self.choices);
        let is_known = |shape| choices.get(shape).is_some_and(|choice| choice.covers(driver, rows));
        let shapes: Vec<Shape> = shapes.iter().filter(|shape| !is_known(shape)).copied().collect();
        if shapes.is_empty() {
            return Ok(());
        }
        let bytes = scratch_bytes(&shapes, rows.min(driver.tried_rows()));
        let memory = room(bytes)?;
        let scratch = Scratch { at: memory.at, bytes: memory.bytes };
        let chosen = choose(driver, STREAM, &shapes, rows, scratch, driver.keeps())?;
        locked(&self.algorithms).clear();
        choices.extend(shapes.into_iter().zip(chosen));
        Ok(())
    }

    /// Chooses for a product that nobody reserved for, in the midst of a forward: not in memory of its lanes, which what
    /// was asked for may still read.
    fn choose_now(&self, shape: Shape, rows: usize) -> Result<()> {
        let least = scratch_bytes(&[shape], 1);
        let room = |mut bytes: usize| loop {
            match self.lasting(bytes, "trying a product") {
                Err(CudaError::OutOfMemory { .. }) if bytes > least => bytes = (bytes / 2).max(least),
                memory => return memory,
            }
        };
        self.choose(&[shape], rows.max(self.most_rows.load(Ordering::Relaxed)), room)
    }

    /// Runs a forward, alone on this device.
    pub fn run<R>(&self, forward: impl FnOnce() -> R) -> R {
        let _alone = locked(&self.forwards);
        self.retired.hold();
        self.settle();
        let result = forward();
        self.settle();
        self.retired.release();
        locked(&self.lanes).shrink();
        result
    }

    /// Forgets what was listed and not asked for, of a forward that failed. Branches of it that still run read memory
    /// that the next one takes: it waits for them.
    fn settle(&self) {
        locked(&self.queue).begin();
        for stream in locked(&self.lanes).join() {
            // what goes wrong shows in the next call
            let _ = self.driver.record(stream).and_then(|event| self.driver.wait(STREAM, &event));
        }
    }

    /// What `forward` asks for goes beside whatever else is asked for until [`Self::join`]: it may read what was made
    /// before it began, and nothing reads what it makes before they are joined. Meanwhile nothing is asked for where it
    /// began but other branches.
    pub fn branch<R>(&self, forward: impl FnOnce() -> R) -> Result<R> {
        self.await_loaded()?;
        let (from, to, back) = locked(&self.lanes).branch(&*self.driver)?;
        locked(&self.queue).push(&*self.driver, to, Command::After(from))?;
        let result = forward();
        locked(&self.lanes).come_back(back);
        Ok(result)
    }

    /// What is asked for from now on comes after all branches. Tells whether there were any.
    pub fn join(&self) -> Result<bool> {
        let streams = locked(&self.lanes).join();
        for &stream in &streams {
            locked(&self.queue).push(&*self.driver, STREAM, Command::After(stream))?;
        }
        Ok(!streams.is_empty())
    }

    fn stream(&self) -> Stream {
        locked(&self.lanes).stream()
    }

    /// How many batches' sizes are one launch.
    pub fn graphs(&self) -> usize {
        locked(&self.queue).graphs()
    }

    fn memory(&self, bytes: usize) -> Result<Arc<Memory>> {
        locked(&self.lanes).take(&self.driver, bytes)
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

    /// Room for a matrix that stays, with anything in it: weights.
    pub fn weights(&self, rows: usize, width: usize, number: Number) -> Result<Matrix> {
        let stride = stride_of(width);
        let memory = self.lasting(rows * stride * number.bytes(), "weights")?;
        Ok(Matrix::new(memory, rows, width, stride, number))
    }

    /// Fills [weights](Self::weights), or some rows of them. `stored` are the rows as a file has them, with nothing between
    /// them; what is kept otherwise is rounded on the card, once.
    pub fn fill(&self, weights: &Matrix, stored: &[u8], number: Number) -> Result<()> {
        let (rows, width, row) = (weights.rows(), weights.width(), weights.width() * number.bytes());
        assert_eq!(stored.len(), rows * row, "{rows} rows of {width}");
        if number == weights.number() && width == weights.stride() {
            return self.load(stored, weights.at()).map(drop);
        }
        let at_once = (STAGED / row).clamp(1, rows);
        let mut staged = locked(&self.loading.staged);
        let memory = match &*staged {
            Some(memory) if memory.bytes >= at_once * row => memory.clone(),
            _ => {
                *staged = None;
                staged.insert(self.lasting(at_once * row, "weights on their way")?).clone()
            }
        };
        for (part, bytes) in stored.chunks(at_once * row).enumerate() {
            let (first, rows) = (part * at_once, bytes.len() / row);
            let from = Matrix::new(memory.clone(), rows, width, width, number);
            let (kernel, grid, arguments) = conversion(&from, &weights.some_rows(first..first + rows));
            self.driver.prepare(kernel)?;
            let stream = self.load(bytes, memory.at)?;
            let _nobody_records = self.retired.nobody_records();
            let (grid, threads) = (grid.map(|blocks| blocks as u32), THREADS);
            self.driver
                .launch(stream, &Launch { kernel, grid, threads, shared: 0, arguments: &arguments })?;
            self.loading.is_behind.store(true, Ordering::Release);
        }
        Ok(())
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

    /// A list of `f32` that stays as long as somebody holds it, of whatever size.
    pub fn table(&self, values: &[f32]) -> Result<Integers> {
        let memory = self.lasting(size_of_val(values), "a table")?;
        let stream = self.load(bytemuck::cast_slice(values), memory.at)?;
        self.driver.synchronize(stream)?;
        Ok(Integers { at: memory.at, _memory: memory, count: values.len() })
    }

    /// For what a batch is made of.
    pub fn sections(&self) -> Sections {
        std::mem::take(&mut *locked(&self.sections)).cleared()
    }

    /// What a batch is made of, in one go. Whatever was asked for before is asked for before the copy. `rows` is the size
    /// of the batch.
    pub fn upload_batch(&self, sections: Sections, rows: usize) -> Result<Vec<Integers>> {
        locked(&self.queue).batch(&*self.driver, rows <= SMALL_BATCH)?;
        self.largest_batch.fetch_max(sections.bytes.len(), Ordering::Relaxed);
        let memory = self.memory(sections.bytes.len())?;
        self.driver.upload(STREAM, &sections.bytes, memory.at)?;
        let uploaded = lists_in(&memory, &sections.places);
        *locked(&self.sections) = sections;
        Ok(uploaded)
    }

    /// Sends what a batch is made of while another one is computed; none if one is waiting there already.
    pub fn stage(&self, sections: Sections) -> Result<Option<Staged>> {
        let mut staging = locked(&self.staging);
        if staging.memory.as_ref().is_some_and(|memory| Arc::strong_count(memory) > 1) {
            return Ok(None);
        }
        let bytes = sections.bytes.len();
        let memory = self.staging_of(&mut staging, bytes)?;
        let stream = match staging.stream {
            Some(stream) => stream,
            None => *staging.stream.insert(self.driver.stream()?),
        };
        let _nobody_records = self.retired.nobody_records();
        if let Some(copied) = &staging.copied {
            self.driver.wait(stream, copied)?;
        }
        self.driver.upload(stream, &sections.bytes, memory.at)?;
        let arrived = self.driver.record(stream)?;
        let places = sections.places.clone();
        *locked(&self.sections) = sections;
        Ok(Some(Staged { memory, places, bytes, arrived }))
    }

    /// The memory for a batch of so many bytes.
    fn staging_of(&self, staging: &mut Staging, bytes: usize) -> Result<Arc<Memory>> {
        match &staging.memory {
            Some(memory) if memory.bytes >= bytes => Ok(memory.clone()),
            _ => {
                staging.memory = None;
                Ok(staging.memory.insert(self.lasting(bytes.max(1), "what a batch is made of")?).clone())
            }
        }
    }

    /// [`Self::upload_batch`] of what is on the card already: copied there, to where it would have been uploaded to, for
    /// the sake of [graphs](crate::driver::Graph).
    pub fn unstage_batch(&self, staged: &Staged, rows: usize) -> Result<Vec<Integers>> {
        locked(&self.queue).batch(&*self.driver, rows <= SMALL_BATCH)?;
        let memory = self.memory(staged.bytes)?;
        self.driver.wait(STREAM, &staged.arrived)?;
        self.driver.copy(STREAM, staged.memory.at, memory.at, staged.bytes)?;
        locked(&self.staging).copied = Some(self.driver.record(STREAM)?);
        Ok(lists_in(&memory, &staged.places))
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
        let shared = crate::modules::shared_bytes(kernel);
        let grid = grid.map(|blocks| u32::try_from(blocks).expect("a grid of less than 2^32 blocks"));
        self.list(Command::Launch { kernel, grid, threads, shared, arguments: arguments.to_vec() })
    }

    /// What is listed comes after all that was loaded until now.
    fn list(&self, command: Command) -> Result<()> {
        self.await_loaded()?;
        locked(&self.queue).push(&*self.driver, self.stream(), command)
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
        self.list(Command::Multiply { shape, rows, x, weight, bias, y, algorithm })
    }

    fn algorithm(&self, shape: &Shape, rows: usize) -> Result<Arc<Algorithm>> {
        if let Some(known) = locked(&self.algorithms).get(&(*shape, rows)) {
            return Ok(known.clone());
        }
        let is_rehearsal = locked(&self.kernels).is_some();
        if !is_rehearsal && !locked(&self.choices).contains_key(shape) {
            self.choose_now(*shape, rows)?;
        }
        let algorithm = match locked(&self.choices).get(shape) {
            Some(choice) => choice.algorithm(&*self.driver, rows)?.clone(),
            None => Algorithm(Vec::new()), // nobody makes the products of a rehearsal
        };
        let algorithm = Arc::new(algorithm);
        locked(&self.algorithms).insert((*shape, rows), algorithm.clone());
        Ok(algorithm)
    }

    /// The moment after what was listed until now.
    pub fn moment(&self) -> Result<Moment> {
        locked(&self.queue).mark(&*self.driver, self.stream())
    }

    /// The values of matrices of `f32`, of each so many rows, in one go. Waits for all that was asked for.
    pub fn read(&self, results: &[(&Matrix, usize)]) -> Result<Vec<Vec<f32>>> {
        self.read_after(results, || ())
    }

    /// The same; `meanwhile` is called once all is asked for, before anything is waited for.
    pub fn read_after(
        &self,
        results: &[(&Matrix, usize)],
        meanwhile: impl FnOnce(),
    ) -> Result<Vec<Vec<f32>>> {
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
        locked(&self.queue).flush(&*self.driver, &self.retired.recording)?;
        meanwhile();
        self.driver.download(STREAM, packed.at(), bytemuck::cast_slice_mut(&mut values))?;
        locked(&self.queue).done(&*self.driver)?;
        Ok(places.iter().zip(counts).map(|(&place, count)| values[place..place + count].to_vec()).collect())
    }
}

#[cfg(all(test, feature = "play"))]
mod tests {
    use super::*;
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

    fn shape() -> Shape {
        Shape {
            outputs: 16,
            inputs: 64,
            x_stride: 64,
            weight_stride: 64,
            y_stride: 16,
            number: Number::Bf16,
            output: Number::Bf16,
            has_bias: true,
            accumulates: false,
        }
    }

    #[test]
    fn what_is_reserved_for_is_made_by_algorithms_that_were_tried() {
        let card = Played::new(Play::new(Arc::new(NoKernels)));
        let device = Device::new(card.clone());
        let shape = shape();
        let needs = Needs { bytes: vec![1 << 16], shapes: vec![shape], kernels: vec!["add_f"], staged: 0 };
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

    /// The library's first offer for few rows has bits of its own.
    #[test]
    fn what_nobody_reserved_for_is_tried_before_it_is_made() {
        let card = Played::new(Play::new(Arc::new(NoKernels)));
        let device = Device::new(card.clone());
        let shape = shape();
        let first = card.algorithms(&shape, 1, 1).unwrap().pop().unwrap();
        let used = card.used();
        let made = device.run(|| [1, 8, 32, 64].map(|rows| device.algorithm(&shape, rows).unwrap()));
        assert!(made[0].0 != first.0 && made[0].0[0] != 13, "{made:?}");
        let tried = card.count(Work::Multiply);
        assert!(tried > 0 && card.used() == used, "what was tried on is given back");
        device.run(|| device.algorithm(&shape, 100).unwrap());
        device.reserve(&Needs { shapes: vec![shape], ..Needs::default() }, 128).unwrap();
        assert_eq!(card.count(Work::Multiply), tried, "it is known by now");
    }

    /// What is rounded on the card has the bits that it would have been given on the way there.
    #[test]
    fn weights_are_kept_in_another_format_than_they_are_stored_in() {
        if crate::play::compiler().is_none() {
            return;
        }
        use half::bf16;
        use half::f16;
        let card = Played::new(Play::new(Arc::new(crate::play::Compiled)));
        let device = Device::new(card.clone());
        for (rows, width) in [(1, 1), (3, 33), (5, 64)] {
            let values: Vec<f32> = (0..rows * width)
                .map(|i| ((i * i) as f32 * 0.37).sin() * 3.7f32.powi(i as i32 % 9))
                .collect();
            let bf16s: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
            let f16s: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
            let stored: [(Number, &[u8], Vec<f32>); 3] = [
                (Number::F32, bytemuck::cast_slice(&values), values.clone()),
                (Number::Bf16, bytemuck::cast_slice(&bf16s), bf16s.iter().map(|x| x.to_f32()).collect()),
                (Number::F16, bytemuck::cast_slice(&f16s), f16s.iter().map(|x| x.to_f32()).collect()),
            ];
            for (from, bytes, exact) in stored {
                for to in [Number::F32, Number::Bf16, Number::F16] {
                    let matrix = device.weights(rows, width, to).unwrap();
                    device.fill(&matrix, bytes, from).unwrap();
                    let read = device.run(|| device.read(&[(&matrix, rows)]).unwrap()).concat();
                    let expected = exact.iter().map(|&x| match to {
                        Number::F32 => x,
                        Number::Bf16 => bf16::from_f32(x).to_f32(),
                        Number::F16 => f16::from_f32(x).to_f32(),
                    });
                    assert!(read.iter().copied().eq(expected), "{from:?} to {to:?}, {rows} x {width}");
                }
            }
        }
        let used = card.used();
        device.reserve(&Needs::default(), 1).unwrap();
        assert!(card.used() < used, "what weights went through is given back");
    }

    /// A list that is long enough to be asked for while it is made begins with a product.
    #[test]
    fn products_wait_for_what_was_loaded_as_launches_do() {
        if crate::play::compiler().is_none() {
            return;
        }
        let device = Device::new(Played::new(Play::new(Arc::new(crate::play::Compiled))));
        let [x, early, late] = [(); 3].map(|()| device.weights(8, 8, Number::F32).unwrap());
        let load = |to: &Matrix| device.fill(to, bytemuck::cast_slice(&[1.0f32; 64]), Number::F32).unwrap();
        [&x, &early].into_iter().for_each(load);
        let read = device.run(|| {
            let multiply = |weight| {
                let y = device.matrix(8, 8, Number::F32).unwrap();
                device.linear(&x, weight, None, &y, false).unwrap();
                y
            };
            let made: Vec<Matrix> = (0..40).map(|_| multiply(&early)).collect();
            load(&late);
            let made: Vec<Matrix> = made.into_iter().chain((0..40).map(|_| multiply(&late))).collect();
            device.read(&made.iter().map(|y| (y, 8)).collect::<Vec<_>>()).unwrap()
        });
        assert_eq!(read.concat(), [8.0; 64 * 80]);
    }

    /// Each branch has memory of its own; what does not fit is refused as a whole, and what was there before stays.
    #[test]
    fn branches_are_reserved_for_or_refused_with_the_numbers() {
        let mut play = Play::new(Arc::new(NoKernels));
        play.card.memory = 64 << 10;
        let device = Device::new(Played::new(play));
        device.reserve(&Needs { bytes: vec![8 << 10, 4 << 10], ..Needs::default() }, 1).unwrap();
        let too_much = Needs { bytes: vec![16 << 10, 40 << 10, 40 << 10], ..Needs::default() };
        assert_eq!(
            device.reserve(&too_much, 1).unwrap_err().to_string(),
            "memory for activations takes 98304 bytes on a played card, which has 65536 left"
        );
        assert_eq!(device.reserved(), 12 << 10);
    }

    /// A value that one branch makes is not there for another; after the join all are.
    #[test]
    fn branches_of_a_graph_begin_and_end_with_it() {
        let card = Played::new(Play::new(Arc::new(NoKernels)));
        let device = Device::new(card.clone());
        // addresses repeat in what is reserved, and only there
        device.reserve(&Needs { bytes: vec![4 << 10; 4], ..Needs::default() }, 1).unwrap();
        let forward = || {
            device.run(|| {
                let mut sections = device.sections();
                sections.add(&[0u32], 1);
                device.upload_batch(sections, 1).unwrap();
                let branch = || {
                    device.launch("add_f", [1, 1, 1], 32, &[]).unwrap();
                    device.moment().unwrap();
                    device.matrix(1, 64, Number::F32).unwrap()
                };
                let made = [(); 3].map(|()| device.branch(branch).unwrap());
                assert!(device.join().unwrap() && !device.join().unwrap());
                let mut places = made.each_ref().map(|matrix| matrix.at().0);
                places.sort_unstable();
                assert!(places.windows(2).all(|two| two[0] + 256 <= two[1]), "{places:?}");
                device.read(&[(&made[0], 1)]).unwrap();
            });
        };
        forward();
        // three branches begin after the first stream, which goes on after all three
        assert_eq!((card.count(Work::Wait), card.count(Work::Replay)), (6, 0));
        forward();
        assert_eq!((card.count(Work::Wait), card.count(Work::Replay), device.graphs()), (12, 1, 1));
        let launched = card.count(Work::Launch);
        forward();
        assert_eq!((card.count(Work::Wait), card.count(Work::Replay)), (12, 2));
        assert_eq!(card.count(Work::Launch), launched);
        // one that fails between is waited for
        device.run(|| {
            device.branch(|| device.launch("add_f", [1, 1, 1], 32, &[]).unwrap()).unwrap();
        });
        assert_eq!(card.count(Work::Wait), 13);
        forward();
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
        device
            .reserve(
                &Needs { bytes: vec![60 << 10], shapes: vec![shape], kernels: vec!["add_f"], staged: 0 },
                128,
            )
            .unwrap();
        assert_eq!(device.algorithm(&shape, 1).unwrap().0[0], 2);
        let short = Device::new(card);
        let error = short.reserve(&Needs { bytes: vec![60 << 10], ..Needs::default() }, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "memory for activations takes 61440 bytes on a played card, which has 4096 left"
        );
    }
}
