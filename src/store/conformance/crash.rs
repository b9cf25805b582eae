//! Kills a process that changes definitions, and checks what it left behind.
//!
//! The process is this test binary with the calling test alone, which then calls [`change_until_killed`].

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

use super::*;
use crate::model::connection::Revision;
use crate::store::CatalogChange;
use crate::store::definitions::Definitions;

/// The store that the killed process opens.
const STORE_AT: &str = "KEYBEARER_TEST_STORE";

/// Definitions of each change; a change is written in several chunks.
const DEFINITIONS: usize = 150;
const TEXT_BYTES: usize = 16 * 1024;
const KILLED_WITHIN_MS: u64 = 150;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Number of kills.
pub fn rounds() -> u32 {
    if long_run() { 500 } else { 50 }
}

/// The store that this process changes; `None` unless [`kill_while_changing`] started it.
#[allow(clippy::disallowed_methods, reason = "a test passes it to its child process")]
pub fn store_to_change() -> Option<String> {
    std::env::var(STORE_AT).ok()
}

/// Replaces every definition again and again, and prints the generation of each change that is in force.
pub async fn change_until_killed(store: &dyn DefinitionStore) -> ! {
    loop {
        let over = store.catalog().await.expect("a catalog");
        let number = over.generation + 1;
        let put = names(number).map(|name| {
            let text = format!("{number} {}", "x".repeat(TEXT_BYTES));
            (name, (Revision::random(), Secret::new(text)))
        });
        let change = CatalogChange { put: put.collect(), remove: names(number - 1).collect() };
        let changed = store.change_definitions(&over, change).await.expect("the store replies");
        println!("\nchange {}", changed.expect("there is no other writer").generation);
    }
}

/// The connections of a change; half of them are not in the next one.
fn names(number: u64) -> impl Iterator<Item = Name> {
    (0..DEFINITIONS).map(move |at| {
        let name = if at % 2 == 0 { format!("same-{at}") } else { format!("of-{}-{at}", number % 2) };
        Name::parse(&name).expect("a name")
    })
}

/// Starts `test`, the calling test, as a process that changes this store, and kills it at a random moment. Returns the
/// generation that it printed last.
pub async fn kill_while_changing(test: &str, store: &str) -> u64 {
    let program = std::env::current_exe().expect("the path of this program");
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture"]).env(STORE_AT, store);
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("it starts");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut text = String::new();
    timeout(TIMEOUT, async {
        while !text.contains("change ") {
            assert!(output.read_line(&mut text).await.expect("output") > 0, "the child has ended: {text}");
        }
    })
    .await
    .expect("it changes the definitions");
    sleep(Duration::from_millis(fastrand::u64(..KILLED_WITHIN_MS))).await;
    child.kill().await.expect("it is killed");
    output.read_to_string(&mut text).await.expect("output");
    text.lines().filter_map(|line| line.strip_prefix("change ")?.parse().ok()).max().expect("a change")
}

/// Checks that one change is in force as a whole: the acknowledged one, or the next. Returns true if it is the next.
pub async fn assert_one_change_in_force(store: &dyn DefinitionStore, acknowledged: u64) -> bool {
    let mut read = Definitions::default();
    read.update(store).await.expect("the store replies");
    let number = read.catalog.generation;
    assert!((acknowledged..=acknowledged + 1).contains(&number), "{number} after {acknowledged}");
    let expected: std::collections::BTreeSet<_> = names(number).collect();
    assert!(read.texts.keys().eq(&expected), "{:?}", read.texts.keys());
    for (name, text) in &read.texts {
        let text = text.as_ref().expect("it opens").expose();
        assert!(text.starts_with(&format!("{number} ")), "{name}: {} in change {number}", &text[..8]);
    }
    number > acknowledged
}
