//! The files of the store: sealed, private, damaged, symbolic links, or on a full disk.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{NEW_KEY, OLD_KEY, StoreFixture, state};
use crate::rig::command::{output_text, run};
use crate::rig::crm::{connection, get, person};
use crate::rig::manager::import_refresh_token;
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn no_written_file_contains_a_secret() {
    let fixture = StoreFixture::start().await;
    let sidecar = Sidecar::start(&fixture.config("log: {level: trace}\n")).await;
    assert_eq!(get(&sidecar, "").await.status, 200);
    let admin = format!("http://{}", sidecar.admin());
    let set = run(sidecar.dir.path(), &["secret", "set", "vault", "--admin", &admin], "canary-stored\n").await;
    assert_eq!(set.status.code(), Some(0), "{}", output_text(&set));
    let (dir, _, log) = sidecar.crash().await;
    let export =
        run(dir.path(), &["store", "export", dir.path().join("state/export.jsonl").to_str().unwrap()], "").await;
    assert_eq!(export.status.code(), Some(0), "{}", output_text(&export));
    // Control: the same search finds a canary in plaintext.
    fs::write(dir.path().join("state/planted"), b"\0\x01canary-planted\xff").expect("a file");
    let found = canaries(&dir.path().join("state"));
    assert_eq!(found, ["planted"]);
    for text in [log, output_text(&set), output_text(&export)] {
        assert!(!text.contains("canary"), "{text}");
    }
}

/// The files in `directory` that contain a canary.
fn canaries(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let bytes = fs::read(entry.path()).expect("a file");
        let clear = |text: &[u8]| bytes.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text));
        if clear(b"canary") || clear(b"Y2FuYXJ5") {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

#[tokio::test]
async fn seal_keys_are_rotated_and_a_wrong_key_prevents_the_start() {
    let fixture = StoreFixture::start().await;
    let config = |keys: &str| fixture.config(&format!("store: {{embedded: {{}}, seal_key: {keys}}}\n"));
    let sidecar = Sidecar::start(&config(&format!("\"{OLD_KEY}\""))).await;
    let (dir, addresses, _) = sidecar.crash().await;
    let (path, file) = (dir.path().join("keybearer.yaml"), dir.path().join("state/tokens.redb"));
    let listeners = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n";
    let write = |keys: &str| fs::write(&path, listeners.to_owned() + &config(keys)).expect("a configuration");

    let before = fs::read(&file).expect("a readable file");
    for keys in [format!("\"{NEW_KEY}\""), "\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"".to_owned()] {
        write(&keys);
        let output = run(dir.path(), &["run"], "").await;
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("tokens.redb") && text.contains("seal_key") && !text.contains("panicked"), "{text}");
    }
    assert!(fs::read(&file).expect("a readable file") == before, "nothing is overwritten");

    write(&format!("[\"{NEW_KEY}\", \"{OLD_KEY}\"]"));
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!((get(&sidecar, "").await.status, fixture.token_requests()), (200, 2), "{}", sidecar.log());
    let (dir, addresses, _) = sidecar.crash().await;

    write(&format!("\"{NEW_KEY}\""));
    let early = run(dir.path(), &["run"], "").await;
    assert!(early.status.code() == Some(1) && output_text(&early).contains("reseal"), "{}", output_text(&early));
    write(&format!("[\"{NEW_KEY}\", \"{OLD_KEY}\"]"));
    let reseal = run(dir.path(), &["store", "reseal"], "").await;
    assert_eq!(reseal.status.code(), Some(0), "{}", output_text(&reseal));
    write(&format!("\"{NEW_KEY}\""));
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!((get(&sidecar, "").await.status, fixture.token_requests()), (200, 2), "{}", sidecar.log());
}

/// Damages the store's file in many ways and starts the program on it.
#[tokio::test]
async fn a_damaged_file_is_refused_or_affects_one_connection_and_never_panics() {
    let fixture = StoreFixture::start().await;
    let sidecar = Sidecar::start(&fixture.config("")).await;
    let (mut dir, addresses, _) = sidecar.crash().await;
    let file = dir.path().join("state/tokens.redb");
    let good = fs::read(&file).expect("a readable file");
    let length = good.len();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at % length] ^= 0x55;
        bytes
    };
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), Vec::new()),
        ("zeroes".into(), vec![0; length]),
        ("text".into(), b"not a database at all\n".repeat(400)),
        ("half".into(), good[..length / 2].to_vec()),
        ("one page missing".into(), good[..length - 4096].to_vec()),
        ("trailing garbage".into(), [good.clone(), vec![0xa5; 5000]].concat()),
    ];
    let mut random = fastrand::Rng::with_seed(7);
    cases.extend((0..12).map(|_| random.usize(..length)).map(|at| (format!("byte {at} flipped"), flipped(at))));
    let (mut refused, mut served) = (0, 0);
    for (what, bytes) in cases {
        fs::write(&file, &bytes).expect("a file");
        let mut sidecar = Sidecar::spawn_in_dir(dir, &[]);
        let up = sidecar.wait_until_listening(addresses).await;
        let log = if up {
            served += 1;
            sidecar.wait_until_ready().await;
            assert_eq!(get(&sidecar, "").await.status, 200, "{what}: {}", sidecar.log());
            let (left, _, log) = sidecar.crash().await;
            dir = left;
            log
        } else {
            refused += 1;
            assert_eq!(sidecar.exit().await.code(), Some(1), "{what}: {}", sidecar.log());
            let (left, _, log) = sidecar.crash().await;
            assert!(log.contains("tokens.redb"), "{what}: {log}");
            assert!(fs::read(&file).expect("a readable file") == bytes, "{what}: the file is left unchanged");
            dir = left;
            log
        };
        assert!(!log.contains("panicked at") && !log.contains("canary"), "{what}: {log}");
    }
    assert!(refused >= 3 && served >= 1, "{refused} refused, {served} served");
}

#[tokio::test]
async fn a_symbolic_link_to_the_store_or_its_key_is_refused() {
    let fixture = StoreFixture::start().await;
    for name in ["tokens.redb", "seal-key"] {
        let sidecar = Sidecar::start(&fixture.config("")).await;
        let (dir, _, _) = sidecar.crash().await;
        let path = dir.path().join("state").join(name);
        fs::rename(&path, dir.path().join("elsewhere")).expect("moved");
        symlink(dir.path().join("elsewhere"), &path).expect("a link");
        let output = run(dir.path(), &["run"], "").await;
        assert_eq!(output.status.code(), Some(1), "{name}: {}", output_text(&output));
        assert!(output_text(&output).contains(name), "{}", output_text(&output));
    }
}

#[tokio::test]
async fn a_full_disk_loses_no_token_and_recovers() {
    let disk = Disk::mount(2);
    let server = AuthorizationServer::al(json!({ "lifetime": 2 })).await;
    let upstream = Upstream::start(&server).await;
    let keys = "client_id: owner, client_secret: owner-secret, grant: password, username: ann, password: ann-password";
    let top = format!("state_dir: {}\n", disk.path.display());
    let sidecar = Sidecar::start(&connection(&server, &upstream, &top, keys)).await;
    assert_eq!(get(&sidecar, "").await.status, 200, "{}", sidecar.log());
    let filler = disk.fill();
    let failed = "keybearer_store_operations_total{operation=\"save\",outcome=\"failed\"}";
    sidecar.wait_for_metric(failed, |count| count >= 2.0).await;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let response = get(&sidecar, "").await;
        assert_eq!(response.status, 200, "{}\n{}", response.text(), sidecar.log());
        sleep(Duration::from_millis(30)).await;
    }
    sidecar.wait_for_log("could not be saved").await;
    fs::remove_file(filler).expect("space is free again");
    let saved = "keybearer_store_operations_total{operation=\"save\",outcome=\"ok\"}";
    let before = sidecar.metric(saved).await;
    sidecar.wait_for_metric(saved, |count| count > before).await;
    // Avoids a crash between a rotation and its write: the next token is long-lived, and saved before it is logged.
    server.control(json!({ "lifetime": 60 })).await;
    sidecar.wait_for_log("\"lifetime_s\":60.0").await;
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!(get(&sidecar, "").await.status, 200);
    assert_eq!(server.stats().await["reused"], 0, "{}", sidecar.log());
}

/// A small file system.
struct Disk {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    fn mount(mib: u32) -> Disk {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        fs::create_dir(&path).expect("a directory");
        let options = format!("size={mib}m,mode=700");
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).status();
        assert!(mounted.is_ok_and(|status| status.success()), "cannot mount a tmpfs: run the tests as root");
        Disk { path, _dir: dir }
    }

    /// Fills the file system.
    fn fill(&self) -> PathBuf {
        let file = self.path.join("filler");
        let _ = fs::write(&file, vec![1; 64 << 20]);
        assert!(fs::metadata(&file).expect("a filler").len() > 0);
        file
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

#[tokio::test]
async fn a_key_readable_by_others_is_restricted_and_logged() {
    let server = AuthorizationServer::op(json!({ "lifetime": 60 })).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&person(&server, &upstream, "", ", grant: authorization_code")).await;
    assert_eq!(import_refresh_token(&sidecar, &server.refresh_token("ann").await, None).await.status, 200);
    let (dir, addresses, _) = sidecar.crash().await;
    let file = dir.path().join("state/seal-key");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("others may read it");
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!(get(&sidecar, "").await.status, 200, "{}", sidecar.log());
    assert_eq!(fs::metadata(state(&sidecar).join("seal-key")).expect("the key").mode() & 0o777, 0o600);
    assert!(sidecar.log().contains("seal-key"), "the change is logged");
}
