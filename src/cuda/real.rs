//! A card, by CUDA's driver, NVRTC and cublasLt. None of these need be there when this is built, or started.
//!
//! ```text
//! Context   one for each card of the process: the driver's context, kernels, the fault that ended it
//! Real      one for each caller: streams, a ring for small uploads, descriptors of products
//! ```
//!
//! # Errors
//!
//! Out of memory is an error like others. Whatever else the driver refuses is a fault, also what is our own mistake:
//! after an illegal address every call fails, allocation and a new context too (seen on an H100: even a reset of the
//! primary context, which says success, leaves error 700). So the first fault is kept, and the driver is not asked
//! again.

#![expect(unsafe_code, reason = "libraries of C")]

mod context;
mod product;
mod upload;

use std::any::Any;
use std::fmt;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;

use cudarc::driver::result as cuda;
use cudarc::driver::sys;

pub use self::context::cards;

use self::context::Context;
use self::product::Products;
use self::product::WORKSPACE;
use self::upload::Ring;
use crate::compile::cache_dir;
use crate::driver::Address;
use crate::driver::Algorithm;
use crate::driver::Argument;
use crate::driver::Card;
use crate::driver::Driver;
use crate::driver::Event;
use crate::driver::Graph;
use crate::driver::Launch;
use crate::driver::Product;
use crate::driver::Result;
use crate::driver::Shape;
use crate::driver::Stream;

/// Opens a card: with streams of its own, also where the card is open already.
pub fn open(index: usize) -> Result<Arc<dyn Driver>> {
    let context = Context::of(index)?;
    context.bind()?;
    let products = Products::new(&context)?;
    let ring = Ring::new(&context)?;
    let real = Real {
        streams: RwLock::default(),
        products: Mutex::new(products),
        ring: Mutex::new(ring),
        events: Arc::default(),
        context,
    };
    real.stream()?;
    Ok(Arc::new(real))
}

/// Where cubins and choices of algorithms are kept.
fn kept() -> Option<PathBuf> {
    Some(cache_dir()?.join("kernels"))
}

/// What the driver calls things by; null is none.
struct Handle<T>(*mut T);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Handle<T> {}

// SAFETY: the driver's handles may be used by any thread that has bound their context.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: the same.
unsafe impl<T> Sync for Handle<T> {}

type CudaStream = Handle<sys::CUstream_st>;
type CudaEvent = Handle<sys::CUevent_st>;

struct Real {
    context: Arc<Context>,
    streams: RwLock<Vec<OneStream>>,
    products: Mutex<Products>,
    ring: Mutex<Ring>,
    events: Arc<Mutex<Vec<CudaEvent>>>,
}

#[derive(Clone, Copy)]
struct OneStream {
    stream: CudaStream,
    workspace: Address,
}

/// A point in a stream; its event is used again.
struct Point {
    event: CudaEvent,
    of: Arc<Mutex<Vec<CudaEvent>>>,
}

impl Drop for Point {
    fn drop(&mut self) {
        locked(&self.of).push(self.event);
    }
}

struct Instance {
    graph: Handle<sys::CUgraphExec_st>,
    context: Arc<Context>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made by `end_capture`, destroyed once; one that still runs goes on.
            let destroyed = unsafe { cuda::graph::exec_destroy(self.graph.0) };
            // A fault shows in the next call.
            let _ = self.context.check("destroy a graph", destroyed);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Debug for Real {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Real").field("card", &self.context.card).finish_non_exhaustive()
    }
}

impl Real {
    /// The stream, with the context bound.
    fn on(&self, stream: Stream) -> Result<OneStream> {
        self.context.bind()?;
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        let found = streams.get(stream.0).copied();
        found.ok_or_else(|| self.context.fault(format!("{stream:?} is none of its streams")))
    }

    fn point<'a>(&self, event: &'a Event) -> Result<&'a Point> {
        let point: &(dyn Any + Send + Sync) = &**event;
        point.downcast_ref().ok_or_else(|| self.context.fault("an event of another card".to_owned()))
    }
}

impl Driver for Real {
    fn card(&self) -> &Card {
        &self.context.card
    }

    fn free(&self) -> Result<u64> {
        self.context.bind()?;
        let (free, _) = self.context.check("ask for its memory", cuda::mem_get_info())?;
        Ok(free as u64)
    }

    fn allocate(&self, bytes: usize, what: &str) -> Result<Address> {
        self.context.allocate(bytes, what)
    }

    fn release(&self, address: Address) {
        if self.context.bind().is_ok() {
            // SAFETY: the caller answers for it: allocated above, released once. The driver waits for what uses it.
            let freed = unsafe { cuda::free_sync(address.0) };
            // A fault shows in the next call.
            let _ = self.context.check("free memory", freed);
        }
    }

    fn stream(&self) -> Result<Stream> {
        self.context.bind()?;
        let stream = Handle(
            self.context
                .check("make a stream", cuda::stream::create(cuda::stream::StreamKind::NonBlocking))?,
        );
        let workspace = self.context.allocate(WORKSPACE, "room for products")?;
        let mut streams = self.streams.write().unwrap_or_else(PoisonError::into_inner);
        streams.push(OneStream { stream, workspace });
        Ok(Stream(streams.len() - 1))
    }

    fn upload(&self, stream: Stream, from: &[u8], to: Address) -> Result<()> {
        let OneStream { stream, .. } = self.on(stream)?;
        // SAFETY: a stream of ours.
        let status = self.context.check("ask a stream", unsafe { cuda::stream::is_capturing(stream.0) })?;
        if status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            let problem = "an upload cannot be recorded: its bytes are gone when it is done again";
            return Err(self.context.fault(problem.to_owned()));
        }
        if from.len() < upload::LARGE {
            locked(&self.ring).upload(&self.context, stream, from, to)
        } else {
            self.context.upload_large(stream, from, to)
        }
    }

    fn download(&self, stream: Stream, from: Address, to: &mut [u8]) -> Result<()> {
        let OneStream { stream, .. } = self.on(stream)?;
        locked(&self.ring).download(&self.context, stream, from, to)
    }

    fn copy(&self, stream: Stream, from: Address, to: Address, bytes: usize) -> Result<()> {
        let OneStream { stream, .. } = self.on(stream)?;
        // SAFETY: the caller answers for the addresses.
        self.context.check("copy", unsafe { cuda::memcpy_dtod_async(to.0, from.0, bytes, stream.0) })
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        let OneStream { stream, .. } = self.on(stream)?;
        // SAFETY: a stream of ours.
        self.context.check("wait for a stream", unsafe { cuda::stream::synchronize(stream.0) })
    }

    fn prepare(&self, kernel: &str) -> Result<()> {
        self.context.bind()?;
        self.context.function(kernel).map(drop)
    }

    fn prepare_all(&self, kernels: &[&str]) -> Result<()> {
        // Those of one module wait for the first of them.
        std::thread::scope(|scope| {
            let threads: Vec<_> = kernels.iter().map(|kernel| scope.spawn(|| self.prepare(kernel))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("it answers with an error"))
        })
    }

    fn launch(&self, stream: Stream, launch: &Launch<'_>) -> Result<()> {
        let OneStream { stream, .. } = self.on(stream)?;
        let function = self.context.function(launch.kernel)?;
        function.allow_shared(&self.context, launch.shared)?;
        // Each is read by its parameter's size, from the least significant byte on.
        let mut values: Vec<u64> = launch
            .arguments
            .iter()
            .map(|argument| match *argument {
                Argument::Address(Address(address)) => address,
                Argument::U32(number) => number.into(),
                Argument::F32(number) => number.to_bits().into(),
            })
            .collect();
        let mut pointers: Vec<_> = values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: the function is of a module that stays; the caller answers for the arguments, which are copied before
        // this returns.
        let launched = unsafe {
            cuda::launch_kernel(
                function.function.0,
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared,
                stream.0,
                &mut pointers,
            )
        };
        self.context.check(launch.kernel, launched)
    }

    fn algorithms(&self, shape: &Shape, rows: usize, most: usize) -> Result<Vec<Algorithm>> {
        self.context.bind()?;
        locked(&self.products).algorithms(&self.context, shape, rows, most)
    }

    fn keeps(&self) -> Option<PathBuf> {
        kept()
    }

    fn accepts(&self, shape: &Shape, rows: usize, algorithm: &Algorithm) -> Result<bool> {
        self.context.bind()?;
        locked(&self.products).accepts(&self.context, shape, rows, algorithm)
    }

    fn multiply(&self, stream: Stream, product: &Product<'_>) -> Result<()> {
        let OneStream { stream, workspace } = self.on(stream)?;
        locked(&self.products).multiply(&self.context, stream, workspace, product)
    }

    fn record(&self, stream: Stream) -> Result<Event> {
        let OneStream { stream, .. } = self.on(stream)?;
        let known = locked(&self.events).pop();
        let event = match known {
            Some(event) => event,
            None => self.context.event(true)?,
        };
        let point = Point { event, of: self.events.clone() };
        // SAFETY: an event and a stream of ours.
        self.context.check("record an event", unsafe { cuda::event::record(event.0, stream.0) })?;
        Ok(Arc::new(point))
    }

    fn wait(&self, stream: Stream, event: &Event) -> Result<()> {
        let OneStream { stream, .. } = self.on(stream)?;
        self.context.wait(stream, self.point(event)?.event)
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<Duration> {
        self.context.bind()?;
        let (from, to) = (self.point(from)?.event, self.point(to)?.event);
        // SAFETY: events of ours that were recorded.
        let milliseconds = unsafe {
            self.context.check("wait for an event", cuda::event::synchronize(from.0))?;
            self.context.check("wait for an event", cuda::event::synchronize(to.0))?;
            self.context.check("ask for a time", cuda::event::elapsed(from.0, to.0))?
        };
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.)) / 1e3))
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        let OneStream { stream, .. } = self.on(stream)?;
        // Of this thread: others may allocate meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of ours.
        self.context.check("begin to record", unsafe { cuda::stream::begin_capture(stream.0, mode) })
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        let OneStream { stream, .. } = self.on(stream)?;
        // SAFETY: a stream of ours.
        let graph = self.context.check("end recording", unsafe { cuda::stream::end_capture(stream.0) })?;
        if graph.is_null() {
            return Err(self.context.fault("nothing was recorded".to_owned()));
        }
        // SAFETY: just made; what is made of it does not need it any more.
        let made = unsafe {
            let made = cuda::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0));
            self.context.check("destroy a graph", cuda::graph::destroy(graph))?;
            made
        };
        let graph = Handle(self.context.check("make a graph", made)?);
        let instance = Instance { graph, context: self.context.clone() };
        // SAFETY: just made. Now, so that the first replay does not wait for it.
        let uploaded = unsafe { cuda::graph::upload(instance.graph.0, stream.0) };
        self.context.check("upload a graph", uploaded)?;
        Ok(Arc::new(instance))
    }

    fn replay(&self, stream: Stream, graph: &Graph) -> Result<()> {
        let OneStream { stream, .. } = self.on(stream)?;
        let instance: &(dyn Any + Send + Sync) = &**graph;
        let Some(instance) = instance.downcast_ref::<Instance>() else {
            return Err(self.context.fault("a graph of another card".to_owned()));
        };
        // SAFETY: an instance that lives, a stream of ours.
        self.context.check("launch a graph", unsafe { cuda::graph::launch(instance.graph.0, stream.0) })
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            return;
        }
        let streams = std::mem::take(self.streams.get_mut().unwrap_or_else(PoisonError::into_inner));
        for OneStream { stream, workspace } in streams {
            // SAFETY: made in `stream`, and nobody knows them any more. What still runs is waited for.
            let done = unsafe {
                cuda::stream::synchronize(stream.0)
                    .and_then(|()| cuda::stream::destroy(stream.0))
                    .and_then(|()| cuda::free_sync(workspace.0))
            };
            if self.context.check("close a stream", done).is_err() {
                return;
            }
        }
        locked(&self.ring).free(&self.context);
        locked(&self.products).free();
        for event in locked(&self.events).drain(..) {
            // SAFETY: of this list alone; points that are still held come to a list that nobody reads.
            let _ = unsafe { cuda::event::destroy(event.0) };
        }
    }
}
