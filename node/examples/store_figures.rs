//! Figures of the store, to be read by a person:
//! `cargo run --release -p caje-node --example store_figures`. Writes some 6 GiB below the temporary folder.

use std::collections::VecDeque;
use std::error::Error;
use std::fs;
use std::time::Instant;

use caje_node::block::{BlockIndex, BlockSize};
use caje_node::store::{self, Facts, GrowingBlock, Recovered, Settings, Store, StoreEvents};
use nix::sys::resource::{Usage, UsageWho, getrusage};

/// Opens the store as a node does at start.
fn open(settings: &Settings) -> (Store, Vec<Recovered>) {
    Store::open(settings.clone(), StoreEvents::default()).expect("opening the store")
}

/// Runs on a thread with a ring, as a data thread is.
fn ring_on(work: impl Future<Output = ()>) {
    tokio_uring::start(async {
        let _ring = store::attach_ring();
        work.await;
    });
}

fn resident() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.unwrap_or_default()
        .trim_start_matches("VmRSS:")
        .trim()
        .to_owned()
}

/// A small generator with a fixed start, so that runs compare.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("caje-store-figures-{}", std::process::id()));
    let settings = Settings {
        block_size: BlockSize::default(),
        memory_bytes: 64 << 20,
        size_bytes: 8 << 30,
        ..Settings::new(dir.join("cache"), 0, 0)
    };
    let head = vec![b'h'; 500];
    let body = [7; 4096];
    let count = 100_000;
    ring_on(async {
        let (store, _) = open(&settings);
        let start = Instant::now();
        for number in 0..count {
            let object = store.create();
            object.set_length(4096);
            let mut block = GrowingBlock::with_capacity(4096);
            block.append(&body);
            store.put(&object, BlockIndex(0), block).await;
            let key = format!("http://www.example.com/images/some/path/{number}");
            store.publish(
                &object,
                key.as_bytes(),
                head.clone().into(),
                Facts::default(),
            );
        }
        store.flush().await;
        println!(
            "{count} objects of 4 KiB stored in {:?}, RSS {}",
            start.elapsed(),
            resident()
        );
    });
    let start = Instant::now();
    let (store, recovered) = open(&settings);
    let taken = start.elapsed();
    println!(
        "{} objects recovered in {taken:?}, RSS {}",
        recovered.len(),
        resident()
    );
    drop(recovered);
    ring_on(async {
        let small = store.create();
        small.set_length(1024);
        let mut block = GrowingBlock::with_capacity(1024);
        block.append(&body[..1024]);
        store.put(&small, BlockIndex(0), block).await;
        store.flush().await;
        let rounds = 10_000_000;
        let start = Instant::now();
        for _ in 0..rounds {
            std::hint::black_box(store.cached(&small, BlockIndex(0)));
        }
        println!("cached(): {} ns", start.elapsed().as_nanos() / rounds);

        let blocks = 20_480u32;
        let length = u64::from(blocks) << 18;
        let large = store.create();
        large.set_length(length);
        store.publish(&large, b"large", Box::default(), Facts::default());
        let piece = [1; 16 << 10];
        let start = Instant::now();
        let mut peak = String::new();
        for block in 0..blocks {
            let mut growing = GrowingBlock::with_capacity(256 << 10);
            while growing.append(&piece) > 0 {}
            store.put(&large, BlockIndex(block), growing).await;
            if block == blocks / 2 {
                peak = resident();
            }
        }
        store.flush().await;
        println!(
            "5 GiB written in {:?}, RSS {peak}, then {}",
            start.elapsed(),
            resident()
        );
        println!("{:?}", store.metrics());

        let mut random = Random(42);
        let reads = 20_000;
        let start = Instant::now();
        let cpu = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        let mut running = VecDeque::new();
        for _ in 0..reads {
            let block = BlockIndex(random.below(blocks.into()) as u32);
            running.push_back(tokio::task::spawn_local(store.read(&large, block)));
            if running.len() == 32 {
                running.pop_front().unwrap().await.unwrap().unwrap();
            }
        }
        for read in running {
            read.await.unwrap().unwrap();
        }
        let taken = start.elapsed();
        let after = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        let micros = |usage: &Usage| {
            let (user, system) = (usage.user_time(), usage.system_time());
            (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec()
        };
        println!(
            "{:.0} random reads of 256 KiB a second, {} us of CPU each, RSS {}",
            f64::from(reads) / taken.as_secs_f64(),
            (micros(&after) - micros(&cpu)) / i64::from(reads),
            resident()
        );
    });
    let start = Instant::now();
    drop(store);
    println!("closed in {:?}", start.elapsed());
    fs::remove_dir_all(dir)?;
    Ok(())
}
