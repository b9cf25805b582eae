//! Cost of the sealed store as it grows, in a file and in Redis (redis-server on loopback, without persistence).
//! `cargo bench --profile dist --bench store [-- --full] [--redis]`: up to a million subjects; Redis only.
//!
//! On a shared machine only the growth is meaningful, so each time is followed by its multiple of the smallest store's.
//! Cold means that the kernel was advised to evict the file from the page cache (`posix_fadvise`), which may be
//! partial, and that the store was reopened; the disk's own cache stays.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use keybearer::bench::{
    AccessToken, Clock, EmbeddedStore, Identity, Keyring, Name, OriginSet, RedisAt, RedisKind, RedisSettings,
    RedisStore, Refresh, RefreshToken, SealKey, SecretsInUse, StoreError, StoredToken, Subject, Tasks, TokenKey,
    TokenStore as _,
};
use rustix::fs::{Advice, fadvise};

const BATCH: usize = 5_000;
const LOOKUPS: usize = 500;
const OPENINGS: usize = 9;
const SAVES: usize = 50;
const CONCURRENT_SAVES: usize = 64;

/// One column of the table: sizes in bytes, times in microseconds.
struct Figures {
    subjects: usize,
    file: u64,
    values: Vec<(&'static str, f64)>,
}

fn main() {
    let has_flag = |word: &str| std::env::args().any(|argument| argument == word);
    let sizes: &[usize] =
        if has_flag("--full") { &[1_000, 10_000, 100_000, 1_000_000] } else { &[1_000, 10_000, 100_000] };
    if !has_flag("--redis") {
        let all: Vec<_> = sizes.iter().map(|subjects| measure(*subjects).expect("the store call succeeds")).collect();
        print_table("file, MiB", &all);
        println!();
    }
    let all: Vec<_> = sizes.iter().map(|subjects| measure_redis(*subjects).expect("the store call succeeds")).collect();
    print_table("Redis's memory, MiB", &all);
}

/// A redis-server child process, killed on drop.
struct Server(std::process::Child, u16);

impl Server {
    fn start() -> Server {
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|probe| probe.local_addr()).expect("a port").port();
        let child = std::process::Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"])
            .spawn();
        let server = Server(child.expect("redis-server is installed"), port);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn memory(&self) -> u64 {
        let output =
            std::process::Command::new("redis-cli").args(["-p", &self.1.to_string(), "INFO", "memory"]).output();
        let text = String::from_utf8(output.expect("redis-cli is installed").stdout).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("a figure");
        line.trim().parse().expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have exited.
        let _ = self.0.kill().and_then(|()| self.0.wait().map(drop));
    }
}

fn measure_redis(subjects: usize) -> Result<Figures, StoreError> {
    let server = Server::start();
    let empty = server.memory();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let settings = RedisSettings {
        servers: vec![RedisAt::Tcp { host: "127.0.0.1".to_owned(), port: server.1 }],
        kind: RedisKind::Server,
        tls: false,
        trust: None,
        database: 0,
        username: None,
        password: None,
        key_prefix: "keybearer:".to_owned(),
    };
    let keyring = Keyring::new(&SealKey::new([1; 32]), &[]).expect("a key");
    let store = {
        let _in = runtime.enter();
        RedisStore::new(settings, keyring, Clock::system(), &Tasks::default(), SecretsInUse::default())
    };
    let numbers: Vec<usize> = (0..subjects).collect();
    for batch in numbers.chunks(BATCH / 10) {
        runtime.block_on(store.fill(&batch.iter().map(|number| (key(*number), token(*number))).collect::<Vec<_>>()))?;
    }
    let file = server.memory() - empty;
    let mut random = fastrand::Rng::with_seed(7);
    let mut values = vec![("bytes each", file as f64 / subjects as f64)];
    let lookups: Vec<f64> = (0..LOOKUPS)
        .map(|_| {
            let (took, found) = timed(|| runtime.block_on(store.load(&key(random.usize(..subjects)))));
            assert!(found?.is_some(), "every subject exists");
            Ok::<_, StoreError>(took)
        })
        .collect::<Result<_, _>>()?;
    values.push(("lookup: p50", quantile(lookups.clone(), 0.5)));
    values.push(("lookup: p99", quantile(lookups, 0.99)));
    let pages: Vec<f64> = (0..SAVES)
        .map(|_| {
            let after = key(random.usize(..subjects));
            let (took, page) = timed(|| runtime.block_on(store.list(&after.connection, Some(&after), 256)));
            page.map(|_| took)
        })
        .collect::<Result<_, _>>()?;
    values.push(("page of 256: p50", quantile(pages, 0.5)));
    let save = async |number: usize| {
        let key = key(number);
        let lease = store.lease(&key, Duration::from_secs(10), Duration::from_secs(10)).await?;
        let saved = store.save(&key, token(number), &*lease).await.map(|_| ());
        lease.release(true).await;
        saved
    };
    let single: Vec<f64> = (0..SAVES)
        .map(|_| {
            let number = random.usize(..subjects);
            let (took, saved) = timed(|| runtime.block_on(save(number)));
            saved.map(|()| took)
        })
        .collect::<Result<_, _>>()?;
    values.push(("lease, save, release, single: p50", quantile(single, 0.5)));
    let together: Vec<f64> = (0..SAVES / 5)
        .map(|_| {
            let first = random.usize(..subjects - CONCURRENT_SAVES);
            let (took, saved) = timed(|| runtime.block_on(join_all((first..first + CONCURRENT_SAVES).map(&save))));
            saved.into_iter().collect::<Result<Vec<()>, _>>().map(|_| took / CONCURRENT_SAVES as f64)
        })
        .collect::<Result<_, _>>()?;
    values.push(("lease, save, release, 64 concurrent: each", quantile(together, 0.5)));
    Ok(Figures { subjects, file, values })
}

fn measure(subjects: usize) -> Result<Figures, StoreError> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("tokens.redb");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let store = open(&path);
    let numbers: Vec<usize> = (0..subjects).collect();
    for batch in numbers.chunks(BATCH) {
        store.fill(&batch.iter().map(|number| (key(*number), token(*number))).collect::<Vec<_>>())?;
    }
    drop(store);
    let file = path.metadata().expect("a file").len();
    let mut random = fastrand::Rng::with_seed(7);
    let mut values = vec![("bytes each", file as f64 / subjects as f64)];
    let openings = (0..OPENINGS).map(|_| {
        evict_from_page_cache(&path);
        let (opened, store) = timed(|| open(&path));
        drop(store);
        opened
    });
    values.push(("open, cold: median", quantile(openings.collect(), 0.5)));
    evict_from_page_cache(&path);
    let store = open(&path);
    let wanted: Vec<_> = (0..LOOKUPS).map(|_| key(random.usize(..subjects))).collect();
    let look_up_all = || -> Result<Vec<f64>, StoreError> {
        let one = |key| {
            let (took, found) = timed(|| runtime.block_on(store.load(key)));
            assert!(found?.is_some(), "every subject exists");
            Ok(took)
        };
        wanted.iter().map(one).collect()
    };
    let cold = look_up_all()?;
    // The store caches a few MiB of pages; the rest comes from the kernel's page cache.
    let warm = look_up_all()?;
    values.push(("lookup, cold: p50", quantile(cold.clone(), 0.5)));
    values.push(("lookup, cold: p99", quantile(cold, 0.99)));
    values.push(("lookup, warm: p50", quantile(warm.clone(), 0.5)));
    values.push(("lookup, warm: p99", quantile(warm, 0.99)));
    let save = async |number: usize| {
        let key = key(number);
        let lease = store.lease(&key, Duration::from_secs(10), Duration::from_secs(10)).await?;
        store.save(&key, token(number), &*lease).await.map(|_| ())
    };
    let single: Vec<_> = (0..SAVES)
        .map(|_| {
            let number = random.usize(..subjects);
            let (took, saved) = timed(|| runtime.block_on(save(number)));
            saved.map(|()| took)
        })
        .collect::<Result<_, _>>()?;
    values.push(("save, durable, single: p50", quantile(single, 0.5)));
    let together: Vec<_> = (0..SAVES / 5)
        .map(|_| {
            let first = random.usize(..subjects - CONCURRENT_SAVES);
            let (took, saved) = timed(|| runtime.block_on(join_all((first..first + CONCURRENT_SAVES).map(&save))));
            saved.into_iter().collect::<Result<Vec<()>, _>>().map(|_| took / CONCURRENT_SAVES as f64)
        })
        .collect::<Result<_, _>>()?;
    values.push(("save, durable, 64 concurrent: each", quantile(together, 0.5)));
    Ok(Figures { subjects, file, values })
}

fn open(path: &Path) -> EmbeddedStore {
    let keyring = Keyring::new(&SealKey::new([1; 32]), &[]).expect("a key");
    EmbeddedStore::open(path, keyring, Clock::system(), &Tasks::default()).expect("a store")
}

fn key(number: usize) -> TokenKey {
    let subject = Subject::parse(&format!("user-{number}@acme.test")).expect("a subject");
    TokenKey::of_subject(Name::parse("crm").expect("a name"), subject)
}

fn token(number: usize) -> StoredToken {
    StoredToken {
        identity: Identity::new([7; 32]),
        origins: Arc::new(OriginSet::from_lines(["tls api.acme.test"]).expect("origins")),
        access_token: AccessToken::parse(&format!("{number:0>600}")).expect("a token"),
        obtained: Clock::system().now(),
        lifetime: Duration::from_secs(3600),
        scopes: Some(vec!["read".to_owned(), "write".to_owned()]),
        refresh: Refresh::Token(RefreshToken::parse(&format!("{number:0>64}")).expect("a token")),
        refresh_life: Default::default(),
        version: 0,
    }
}

/// Advises the kernel to evict the file from the page cache.
fn evict_from_page_cache(path: &Path) {
    let file = File::open(path).expect("the file");
    file.sync_all().expect("a sync");
    fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let value = work();
    (start.elapsed().as_secs_f64() * 1e6, value)
}

fn quantile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}

/// Prints Markdown; each figure is followed by its multiple of the smallest store's.
fn print_table(size: &str, all: &[Figures]) {
    let row = |name: &str, cells: Vec<String>| println!("| {name} | {} |", cells.join(" | "));
    row("subjects", all.iter().map(|figures| figures.subjects.to_string()).collect());
    row("---", all.iter().map(|_| "---:".to_owned()).collect());
    row(size, all.iter().map(|figures| format!("{:.1}", figures.file as f64 / 1048576.0)).collect());
    for (index, (name, smallest)) in all[0].values.iter().enumerate() {
        let unit = if name.starts_with("bytes") { "" } else { ", µs" };
        let cell = |figures: &Figures| {
            let value = figures.values[index].1;
            format!("{value:.0} (×{:.2})", value / smallest)
        };
        row(&format!("{name}{unit}"), all.iter().map(cell).collect());
    }
}
