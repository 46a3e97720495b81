//! The driver of real cards against libraries of nobody's (`real/nobody.c`), which check what they are given: a program
//! finds libraries by `LD_LIBRARY_PATH` as it was when it started, so the test starts itself once more.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rewarm_cuda::algorithms;
use rewarm_cuda::algorithms::Scratch;
use rewarm_cuda::driver::Address;
use rewarm_cuda::driver::Algorithm;
use rewarm_cuda::driver::Argument;
use rewarm_cuda::driver::CudaError;
use rewarm_cuda::driver::Driver;
use rewarm_cuda::driver::Launch;
use rewarm_cuda::driver::Number;
use rewarm_cuda::driver::Product;
use rewarm_cuda::driver::Result;
use rewarm_cuda::driver::Shape;
use rewarm_cuda::driver::Stream;
use rewarm_cuda::real;

const FIRST: Stream = Stream(0);
const GIB: u64 = 1 << 30;
/// Tells what is started from what somebody runs with `--ignored`.
const STARTED: &str = "REWARM_TEST_STARTED";

/// Starts a test of this file with these libraries.
fn start(test: &str, libraries: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/nobody.c");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let library = dir.path().join("libnobody.so");
    let compiled =
        Command::new(&compiler).args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).output();
    let Ok(compiled) = compiled else {
        eprintln!("skipped: there is no {compiler}");
        return;
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    for name in libraries {
        // Links to one file are one library, whose parts know of each other.
        for file in [format!("lib{name}.so"), format!("lib{name}.so.1"), format!("lib{name}.so.13")] {
            std::os::unix::fs::symlink(&library, dir.path().join(file)).unwrap();
        }
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", dir.path())
        .env(STARTED, "1")
        .env("REWARM_CACHE_DIR", dir.path().join("cache"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn what_is_asked_of_a_driver_fits_together() {
    start("asks", &["cuda", "nvrtc", "cublasLt"]);
}

#[test]
fn a_library_that_is_missing_is_named() {
    start("misses", &["cuda"]);
}

#[test]
#[ignore = "started by another test"]
fn misses() {
    if std::env::var_os(STARTED).is_none() {
        return;
    }
    // CUDA's libraries may be there all the same.
    let Err(error) = real::cards() else { return };
    let error = error.to_string();
    assert!(
        ["libcublasLt.so.13 is missing", "libnvrtc.so.13 is missing"]
            .iter()
            .any(|words| error.contains(words))
    );
    assert_eq!(real::open(0).unwrap_err().to_string(), error);
}

fn put(driver: &dyn Driver, values: &[f32]) -> Address {
    let at = driver.allocate(4 * values.len(), "a test").unwrap();
    driver.upload(FIRST, bytemuck::cast_slice(values), at).unwrap();
    at
}

fn get(driver: &dyn Driver, at: Address, count: usize) -> Vec<f32> {
    let mut values = vec![0.; count];
    driver.download(FIRST, at, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

/// x += y, of one row of two.
fn add(driver: &dyn Driver, x: Address, y: Address, shared: u32) -> Result<()> {
    use Argument::Address as At;
    use Argument::U32;
    let arguments = &[At(x), U32(8), At(y), U32(8), U32(1), U32(2)];
    driver.launch(FIRST, &Launch { kernel: "add_f", grid: [1; 3], threads: 256, shared, arguments })
}

#[test]
#[ignore = "started by another test"]
fn asks() {
    if std::env::var_os(STARTED).is_none() {
        return;
    }
    lists_and_refuses();
    let driver = real::open(0).unwrap();
    let driver = &*driver;
    memory(driver);
    copies(driver);
    launches(driver);
    products(driver);
    faults(driver);
}

fn lists_and_refuses() {
    let cards = real::cards().unwrap();
    let told: Vec<_> = cards.iter().map(|card| (card.index, &*card.name, card.compute_capability)).collect();
    assert_eq!(told, [(0, "NOBODY H100", (9, 0)), (1, "NOBODY T4", (7, 5))]);
    assert_eq!((cards[0].memory, cards[0].multiprocessors), (4 * GIB, 132));
    assert_eq!((cards[0].driver, cards[0].cublaslt), (13_000, 130_100));
    let refused = |index| real::open(index).unwrap_err().to_string();
    assert!(refused(1).contains("card 1, NOBODY T4, has compute capability 7.5"), "{}", refused(1));
    assert!(refused(7).contains("there is no card 7: the driver lists 2"), "{}", refused(7));
}

fn memory(driver: &dyn Driver) {
    let free = driver.free().unwrap();
    assert_eq!(free, 4 * GIB - (64 << 20), "all but the first stream's workspace");
    let error = driver.allocate(5 << 30, "weights").unwrap_err();
    let CudaError::OutOfMemory { what, asked, free: left, card } = error else { panic!("{error}") };
    assert_eq!((&*what, asked, left, &*card), ("weights", 5 * GIB, free, "NOBODY H100"));
    let at = driver.allocate(1000, "weights").unwrap();
    assert_eq!(driver.free().unwrap(), free - 1000);
    driver.release(at);
    assert_eq!(driver.free().unwrap(), free);
}

fn copies(driver: &dyn Driver) {
    let other = driver.stream().unwrap();
    // One slot of the ring, several, more than all; and what several threads do.
    for bytes in [0, 1, 1 << 20, (3 << 20) + 5, (4 << 20) - 1, 4 << 20, (70 << 20) + 7] {
        let sent: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        let (at, to) = (driver.allocate(bytes, "").unwrap(), driver.allocate(bytes, "").unwrap());
        driver.upload(other, &sent, at).unwrap();
        driver.wait(FIRST, &driver.record(other).unwrap()).unwrap();
        if bytes > 0 {
            driver.copy(FIRST, at, to, bytes).unwrap();
        }
        let mut back = vec![0; bytes];
        driver.download(FIRST, to, &mut back).unwrap();
        assert!(sent == back, "{bytes} bytes");
        driver.release(at);
        driver.release(to);
    }
    let (from, to) = (driver.record(FIRST).unwrap(), driver.record(FIRST).unwrap());
    assert_eq!(driver.elapsed(&from, &to).unwrap(), Duration::from_micros(1500));
    driver.synchronize(other).unwrap();
}

fn launches(driver: &dyn Driver) {
    driver.prepare_all(&["add_f", "add_b", "embed_h"]).unwrap();
    let (x, y) = (put(driver, &[1., 2.]), put(driver, &[10., 20.]));
    add(driver, x, y, 0).unwrap();
    add(driver, x, y, 100 << 10).unwrap();
    assert_eq!(get(driver, x, 2), [21., 42.]);
    driver.begin_capture(FIRST).unwrap();
    add(driver, x, y, 0).unwrap();
    add(driver, x, y, 0).unwrap();
    let graph = driver.end_capture(FIRST).unwrap();
    assert_eq!(get(driver, x, 2), [21., 42.], "recorded, not done");
    driver.replay(FIRST, &graph).unwrap();
    driver.replay(FIRST, &graph).unwrap();
    assert_eq!(get(driver, x, 2), [61., 122.]);
}

fn products(driver: &dyn Driver) {
    let (x, weight) = (put(driver, &[1., 2., 0., 3., 4., 0.]), put(driver, &[1., 0., 0.5, 2.]));
    let (bias, y) = (put(driver, &[100., 200.]), put(driver, &[1000., 2000., 7., 3000., 4000., 7.]));
    let (number, output) = (Number::F32, Number::F32);
    let plain = Shape {
        outputs: 2,
        inputs: 2,
        x_stride: 3,
        weight_stride: 2,
        y_stride: 3,
        number,
        output,
        has_bias: true,
        accumulates: true,
    };
    let offers = driver.algorithms(&plain, 2, 24).unwrap();
    assert_eq!(offers.len(), 2, "one wants too much memory, one is not supported");
    let multiply = |shape: &Shape, algorithm: &Algorithm| {
        driver.multiply(FIRST, &Product { shape, rows: 2, x, weight, bias, y, algorithm })
    };
    multiply(&plain, &offers[0]).unwrap();
    assert_eq!(get(driver, y, 6), [1101., 2204.5, 7., 3103., 4209.5, 7.]);
    multiply(&Shape { has_bias: false, accumulates: false, ..plain }, &offers[1]).unwrap();
    assert_eq!(get(driver, y, 6), [1., 4.5, 7., 3., 9.5, 7.]);

    for unknown in [Algorithm(vec![0; 64]), Algorithm(vec![1])] {
        assert!(!driver.accepts(&plain, 2, &unknown).unwrap());
        assert!(matches!(multiply(&plain, &unknown), Err(CudaError::Unsupported(_))));
    }
    assert!(driver.accepts(&plain, 2, &offers[1]).unwrap());
    assert!(driver.algorithms(&Shape { number: Number::Bf16, ..plain }, 2, 24).unwrap().is_empty());

    let shapes = [plain, Shape { has_bias: false, ..plain }];
    let bytes = algorithms::scratch_bytes(&shapes, 100);
    let scratch = Scratch { at: driver.allocate(bytes, "").unwrap(), bytes };
    let choose = || algorithms::choose(driver, FIRST, &shapes, 100, scratch, driver.keeps()).unwrap();
    let chosen = choose();
    assert_eq!(chosen, choose(), "as it was kept");
    assert_eq!(chosen[0].algorithm(driver, 50).unwrap(), &offers[0]);
    driver.release(scratch.at);
}

fn faults(driver: &dyn Driver) {
    let (other, graph_of_nobody) = (real::open(0).unwrap(), driver.record(FIRST).unwrap());
    let at = driver.allocate(256, "").unwrap();
    // What a kernel does shows in a later call.
    add(driver, Address(4096), at, 0).unwrap();
    let answers = [
        driver.synchronize(FIRST),
        driver.free().map(drop),
        driver.allocate(1, "").map(drop),
        driver.upload(FIRST, &[0], at),
        driver.copy(FIRST, at, at, 1),
        add(driver, at, at, 0),
        driver.replay(FIRST, &graph_of_nobody),
        other.synchronize(FIRST),
        other.stream().map(drop),
        real::open(0).map(drop),
    ];
    for answer in answers {
        let error = answer.unwrap_err().to_string();
        assert_eq!(
            error,
            "NOBODY H100 failed for good: wait for a stream: CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was \
             encountered)"
        );
    }
    driver.release(at);
    drop(other);
}
