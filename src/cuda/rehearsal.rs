//! A card that does nothing: to see what would be asked of one.

use std::sync::Arc;
use std::time::Duration;

use crate::driver::Address;
use crate::driver::Algorithm;
use crate::driver::Card;
use crate::driver::Driver;
use crate::driver::Event;
use crate::driver::Graph;
use crate::driver::Launch;
use crate::driver::Product;
use crate::driver::Result;
use crate::driver::Shape;
use crate::driver::Stream;

/// Says yes to everything.
#[derive(Debug)]
pub(crate) struct Nothing(pub(crate) Card);

impl Driver for Nothing {
    fn card(&self) -> &Card {
        &self.0
    }

    fn free(&self) -> Result<u64> {
        Ok(self.0.memory)
    }

    fn allocate(&self, _: usize, _: &str) -> Result<Address> {
        Ok(Address(1 << 50))
    }

    fn release(&self, _: Address) {}

    fn stream(&self) -> Result<Stream> {
        Ok(Stream(0))
    }

    fn upload(&self, _: Stream, _: &[u8], _: Address) -> Result<()> {
        Ok(())
    }

    fn download(&self, _: Stream, _: Address, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    fn copy(&self, _: Stream, _: Address, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self, _: Stream) -> Result<()> {
        Ok(())
    }

    fn prepare(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn launch(&self, _: Stream, _: &Launch<'_>) -> Result<()> {
        Ok(())
    }

    fn algorithms(&self, _: &Shape, _: usize, _: usize) -> Result<Vec<Algorithm>> {
        Ok(vec![Algorithm(Vec::new())])
    }

    fn multiply(&self, _: Stream, _: &Product<'_>) -> Result<()> {
        Ok(())
    }

    fn record(&self, _: Stream) -> Result<Event> {
        Ok(Arc::new(()))
    }

    fn wait(&self, _: Stream, _: &Event) -> Result<()> {
        Ok(())
    }

    fn elapsed(&self, _: &Event, _: &Event) -> Result<Duration> {
        Ok(Duration::ZERO)
    }

    fn begin_capture(&self, _: Stream) -> Result<()> {
        Ok(())
    }

    fn end_capture(&self, _: Stream) -> Result<Graph> {
        Ok(Arc::new(()))
    }

    fn replay(&self, _: Stream, _: &Graph) -> Result<()> {
        Ok(())
    }
}
