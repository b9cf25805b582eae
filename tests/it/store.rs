//! The sealed store through the built program: what it survives, what it refuses with words, and what it never shows.
//!
//! Not here: crashes under rotation (`crash`), the store by itself (`src/store`).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};

use crate::renewal::{MANAGER, call, connection, get, hand_in, person};
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::redis::Redis;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};

const PATIENCE: Duration = Duration::from_secs(20);
const OLD_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NEW_KEY: &str = "Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

/// Two connections of one scripted server that gives `access-…` and `refresh-…` tokens: `crm` and, without a refresh
/// token, `erp`.
struct Kept {
    server: Scripted,
    upstream: Scripted,
}

impl Kept {
    async fn start() -> Kept {
        let server = Scripted::start(|request, number| {
            let erp = request.request_line().contains("/erp");
            let access = format!("canary-access-{}-{number}", if erp { "erp" } else { "crm" });
            let mut answer = json!({ "access_token": access, "expires_in": 3600 });
            if !erp {
                answer["refresh_token"] = format!("canary-refresh-{number}").into();
            }
            Reply::json(200, &answer)
        })
        .await;
        Kept { server, upstream: Scripted::upstream().await }
    }

    fn config(&self, top: &str) -> String {
        let (server, upstream) = (self.server.address, self.upstream.address);
        let keys = "client_id: a, client_secret: canary-client-secret, grant: password, username: ann, password: canary-password";
        format!(
            "{top}admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\n\
             hosts: {{api.test: \"{upstream}\", erp.test: \"{upstream}\"}}\nconnections:\n\
             - {{name: crm, token_url: \"http://{server}/crm\", {keys}, routes: [{{host: api.test, upstream_tls: false}}]}}\n\
             - {{name: erp, token_url: \"http://{server}/erp\", {keys}, routes: [{{host: erp.test, upstream_tls: false}}]}}\n"
        )
    }

    fn asked(&self) -> usize {
        self.server.received().len()
    }
}

fn state(sidecar: &Sidecar) -> PathBuf {
    sidecar.dir.path().join("state")
}

/// A command of the program over the configuration in `dir`.
pub async fn run(dir: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = program()
        .args(arguments)
        .arg("--config")
        .arg(dir.join("keybearer.yaml"))
        .env("STATE_DIRECTORY", dir.join("state"))
        .env("KEYBEARER_ADMIN_TOKEN", MANAGER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // It may have ended without reading.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes()).await;
    timeout(PATIENCE, child.wait_with_output()).await.expect("it ends in time").expect("output")
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn tokens_outlive_a_restart_and_nobody_is_asked_again() {
    let kept = Kept::start().await;
    let sidecar = Sidecar::start(&kept.config("")).await;
    assert_eq!((get(&sidecar, "").await.status, kept.asked()), (200, 2));
    for name in ["tokens.redb", "seal-key"] {
        assert_eq!(fs::metadata(state(&sidecar).join(name)).expect(name).mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(state(&sidecar)).expect("the directory").mode() & 0o777, 0o700);
    assert!(sidecar.log().contains("seal-key"), "it warns of the key that it made: {}", sidecar.log());
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!(get(&sidecar, "").await.status, 200);
    assert_eq!(kept.asked(), 2, "{}", sidecar.log());
    let sent = kept.upstream.received();
    let values: Vec<_> = sent.iter().flat_map(|request| request.values("authorization")).collect();
    assert_eq!(values.first(), values.last());
}

#[tokio::test]
async fn a_changed_definition_never_sends_an_old_token() {
    let kept = Kept::start().await;
    let sidecar = Sidecar::start(&kept.config("")).await;
    let (dir, addresses, _) = sidecar.crash().await;
    let config = dir.path().join("keybearer.yaml");
    let text = fs::read_to_string(&config).expect("the configuration");
    fs::write(&config, text.replace("username: ann", "username: bob, scopes: [more]")).expect("another one");
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!(get(&sidecar, "").await.status, 200);
    assert_eq!(kept.asked(), 4);
    assert!(kept.server.received()[2..].iter().all(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        body.contains("grant_type=password") && body.contains("username=bob")
    }));
}

/// Records in the file, by an export of it.
async fn exported(dir: &Path) -> String {
    let output = run(dir, &["store", "export", dir.join("state/export.jsonl").to_str().expect("text")], "").await;
    said(&output)
}

#[tokio::test]
async fn access_tokens_that_have_ended_leave_the_file() {
    let server = Scripted::start(|request, number| {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let mut answer = json!({ "access_token": format!("a-{number}"), "token_type": "Bearer", "expires_in": 1 });
        if form.contains("audience=kept") {
            answer["refresh_token"] = format!("r-{number}").into();
        }
        Reply::json(200, &answer)
    })
    .await;
    let (server, upstream) = (server.address, Scripted::upstream().await);
    let script = "fn token_request(request, ctx) { request.form.audience = ctx.subject; request }";
    let config = format!(
        "hosts: {{api.test: \"{}\"}}\nconnections:\n- {{name: crm, token_url: \"http://{server}/token\", client_id: a, \
         client_secret: b, tokens: per_subject, script: {{file: s.rhai}}, routes: [{{host: api.test, upstream_tls: false}}]}}\n",
        upstream.address
    );
    let sidecar = Sidecar::start_with(&config, &[("s.rhai", script)]).await;
    for subject in ["a", "b", "c", "d", "kept"] {
        assert_eq!(get(&sidecar, &format!("Keybearer-Subject: {subject}\r\n")).await.status, 200);
    }
    let (dir, addresses, _) = sidecar.crash().await;
    assert!(exported(dir.path()).await.contains("5 records"));
    let begun = Instant::now();
    let mut left = (dir, addresses, String::new());
    // The first look for them is right after a start.
    while !left.2.contains("1 records") {
        assert!(begun.elapsed() < PATIENCE, "{}", left.2);
        let sidecar = Sidecar::start_over(left.0, left.1, &[]).await;
        let (dir, addresses, _) = sidecar.crash().await;
        let said = exported(dir.path()).await;
        left = (dir, addresses, said);
    }
}

#[tokio::test]
async fn no_file_that_is_written_holds_a_secret() {
    let kept = Kept::start().await;
    let sidecar = Sidecar::start(&kept.config("log: {level: trace}\n")).await;
    assert_eq!(get(&sidecar, "").await.status, 200);
    let admin = format!("http://{}", sidecar.admin());
    let set = run(sidecar.dir.path(), &["secret", "set", "vault", "--admin", &admin], "canary-stored\n").await;
    assert_eq!(set.status.code(), Some(0), "{}", said(&set));
    let (dir, _, log) = sidecar.crash().await;
    let export =
        run(dir.path(), &["store", "export", dir.path().join("state/export.jsonl").to_str().unwrap()], "").await;
    assert_eq!(export.status.code(), Some(0), "{}", said(&export));
    // The positive control: the same search finds a canary that lies in the clear.
    fs::write(dir.path().join("state/planted"), b"\0\x01canary-planted\xff").expect("a file");
    let found = canaries(&dir.path().join("state"));
    assert_eq!(found, ["planted"]);
    for text in [log, said(&set), said(&export)] {
        assert!(!text.contains("canary"), "{text}");
    }
}

/// The files below `directory` that hold a canary.
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
async fn a_second_process_is_told_who_has_the_store() {
    let kept = Kept::start().await;
    let sidecar = Sidecar::start(&kept.config("")).await;
    let second = run(sidecar.dir.path(), &["run"], "").await;
    let text = said(&second);
    assert_eq!(second.status.code(), Some(1), "{text}");
    assert!(text.contains("tokens.redb") && text.contains("in use"), "{text}");
    let export = run(sidecar.dir.path(), &["store", "export", "/dev/null"], "").await;
    assert_eq!(export.status.code(), Some(1));
    assert!(said(&export).contains("stop the instance first"), "{}", said(&export));
    assert_eq!(get(&sidecar, "").await.status, 200);
}

#[tokio::test]
async fn seal_keys_change_side_by_side_and_a_wrong_one_starts_nothing() {
    let kept = Kept::start().await;
    let config = |keys: &str| kept.config(&format!("store: {{embedded: {{}}, seal_key: {keys}}}\n"));
    let sidecar = Sidecar::start(&config(&format!("\"{OLD_KEY}\""))).await;
    let (dir, addresses, _) = sidecar.crash().await;
    let (path, file) = (dir.path().join("keybearer.yaml"), dir.path().join("state/tokens.redb"));
    let listeners = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n";
    let write = |keys: &str| fs::write(&path, listeners.to_owned() + &config(keys)).expect("a configuration");

    let before = fs::read(&file).expect("the store");
    for keys in [format!("\"{NEW_KEY}\""), "\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"".to_owned()] {
        write(&keys);
        let output = run(dir.path(), &["run"], "").await;
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("tokens.redb") && text.contains("seal_key") && !text.contains("panicked"), "{text}");
    }
    assert!(fs::read(&file).expect("the store") == before, "nothing is overwritten");

    write(&format!("[\"{NEW_KEY}\", \"{OLD_KEY}\"]"));
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!((get(&sidecar, "").await.status, kept.asked()), (200, 2), "{}", sidecar.log());
    let (dir, addresses, _) = sidecar.crash().await;

    write(&format!("\"{NEW_KEY}\""));
    let early = run(dir.path(), &["run"], "").await;
    assert!(early.status.code() == Some(1) && said(&early).contains("reseal"), "{}", said(&early));
    write(&format!("[\"{NEW_KEY}\", \"{OLD_KEY}\"]"));
    let reseal = run(dir.path(), &["store", "reseal"], "").await;
    assert_eq!(reseal.status.code(), Some(0), "{}", said(&reseal));
    write(&format!("\"{NEW_KEY}\""));
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!((get(&sidecar, "").await.status, kept.asked()), (200, 2), "{}", sidecar.log());
}

#[tokio::test]
async fn an_export_is_taken_over_by_another_store() {
    let kept = Kept::start().await;
    let key = format!("store: {{embedded: {{}}, seal_key: \"{OLD_KEY}\"}}\n");
    let sidecar = Sidecar::start(&kept.config(&key)).await;
    let (dir, addresses, _) = sidecar.crash().await;
    let file = dir.path().join("export.jsonl");
    let export = run(dir.path(), &["store", "export", file.to_str().unwrap()], "").await;
    assert_eq!(export.status.code(), Some(0), "{}", said(&export));
    assert_eq!(fs::metadata(&file).expect("an export").mode() & 0o777, 0o600);
    fs::remove_dir_all(dir.path().join("state")).expect("the old machine is gone");
    let import = run(dir.path(), &["store", "import", file.to_str().unwrap()], "").await;
    assert_eq!(import.status.code(), Some(0), "{}", said(&import));
    assert!(said(&import).contains("2 records imported"), "{}", said(&import));
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!((get(&sidecar, "").await.status, kept.asked()), (200, 2), "{}", sidecar.log());
}

#[tokio::test]
async fn tokens_and_secrets_move_between_the_file_and_redis_and_under_another_key() {
    let (kept, redis) = (Kept::start().await, Redis::start().await);
    let config = |store: &str, keys: &str| {
        let text = kept.config(&format!("store: {{{store}, seal_key: {keys}}}\n"));
        format!(
            "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}}\n{}",
            text.replace("canary-client-secret", "{store: the-secret}")
        )
    };
    let (file, shared) = ("embedded: {}".to_owned(), format!("redis: {{url: \"redis://127.0.0.1:{}\"}}", redis.port));
    let (old, both, new) =
        (format!("\"{OLD_KEY}\""), format!("[\"{NEW_KEY}\", \"{OLD_KEY}\"]"), format!("\"{NEW_KEY}\""));
    let dir = tempfile::tempdir().expect("a directory");
    let write = |text: &str| fs::write(dir.path().join("keybearer.yaml"), text).expect("a file");
    let export = dir.path().join("export.jsonl").display().to_string();
    let ran = async |arguments: &[&str], input: &str| {
        let output = run(dir.path(), arguments, input).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", said(&output));
        said(&output)
    };
    let served = async |requests: usize| {
        let copy = tempfile::tempdir().expect("a directory");
        for name in ["keybearer.yaml", "state/tokens.redb"] {
            let (from, to) = (dir.path().join(name), copy.path().join(name));
            fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            if from.exists() {
                fs::copy(from, to).expect("a copy");
            }
        }
        let sidecar = Sidecar::start_over(copy, 2, &[]).await;
        assert_eq!((get(&sidecar, "").await.status, kept.asked()), (200, requests), "{}", sidecar.log());
        let (copy, _, _) = sidecar.crash().await;
        copy
    };
    write(&config(&file, &old));
    ran(&["secret", "set", "the-secret"], "canary-client-secret").await;
    let first = served(2).await;
    fs::copy(first.path().join("state/tokens.redb"), dir.path().join("state/tokens.redb")).expect("a copy");
    assert!(ran(&["store", "export", &export], "").await.contains("3 records"));

    // To Redis, whose secrets are found too, and with no token asked for.
    write(&config(&shared, &old));
    assert!(ran(&["store", "import", &export], "").await.contains("3 records imported"));
    assert!(ran(&["store", "import", &export], "").await.contains("0 records imported, 3 left"));
    assert!(ran(&["store", "import", "--overwrite", &export], "").await.contains("3 records imported"));
    assert_eq!(ran(&["secret", "list"], "").await.trim(), "the-secret");
    served(2).await;
    let last = kept.server.received().pop().expect("a request");
    assert!(
        String::from_utf8_lossy(&last.body).contains("canary-client-secret") || last.head.contains("Basic"),
        "{}",
        last.head
    );

    // Under another key, while nobody has it.
    write(&config(&shared, &both));
    assert!(ran(&["store", "reseal"], "").await.contains("3 records are sealed with the first key"));
    write(&config(&shared, &new));
    served(2).await;

    // And back into a file.
    ran(&["store", "export", &export], "").await;
    fs::remove_dir_all(dir.path().join("state")).expect("the old file is gone");
    write(&config(&file, &new));
    assert!(ran(&["store", "import", &export], "").await.contains("3 records imported"));
    served(2).await;
    let text = fs::read_to_string(&export).expect("an export");
    assert!(!text.contains("canary"), "{text}");
}

/// A replica that has it in use gives it back, and another one starts with it.
#[tokio::test]
async fn a_stored_secret_that_redis_has_lost_is_written_back() {
    let (kept, mut redis) = (Kept::start().await, Redis::start().await);
    let top = format!("store: {{redis: {{url: \"redis://127.0.0.1:{}\"}}, seal_key: \"{OLD_KEY}\"}}\n", redis.port);
    let config = kept.config(&top).replace("canary-client-secret", "{store: the-secret}");
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("keybearer.yaml"), &config).expect("a file");
    let set = run(dir.path(), &["secret", "set", "the-secret"], "canary-client-secret").await;
    assert_eq!(set.status.code(), Some(0), "{}", said(&set));
    let sidecar = Sidecar::start(&config).await;
    assert_eq!(get(&sidecar, "").await.status, 200, "{}", sidecar.log());
    redis.stop().await;
    redis.start_again().await;
    sidecar.logged("secret in use was missing from the store").await;
    let other = Sidecar::start(&config).await;
    assert_eq!(get(&other, "").await.status, 200, "{}", other.log());
    // A reading of the configuration is not held up by the connection of the one before.
    let file = sidecar.dir.path().join("keybearer.yaml");
    let text = fs::read_to_string(&file).expect("a configuration");
    fs::write(&file, text + "log: {requests: all}\n").expect("a file");
    sidecar.logged("configuration reloaded").await;
    assert!(!sidecar.log().contains("canary-client-secret"), "{}", sidecar.log());
}

/// A backup of a fleet that goes on working.
#[tokio::test]
async fn an_export_from_redis_is_whole_although_replicas_write_meanwhile() {
    let (kept, redis) = (Kept::start().await, Redis::start().await);
    let store = format!("store: {{redis: {{url: \"redis://127.0.0.1:{}\"}}, seal_key: \"{OLD_KEY}\"}}\n", redis.port);
    let sidecar = Sidecar::start(&kept.config(&store)).await;
    let dir = tempfile::tempdir().expect("a directory");
    let text = fs::read_to_string(sidecar.dir.path().join("keybearer.yaml")).expect("a configuration");
    fs::write(dir.path().join("keybearer.yaml"), text).expect("a file");
    let export = dir.path().join("export.jsonl").display().to_string();
    let admin = sidecar.admin();
    let busy = tokio::spawn(async move {
        for number in 0.. {
            let secret = json!({ "value": "s3cr3t" });
            crate::renewal::call(admin, "PUT", &format!("/secrets/number-{number}"), &secret).await;
        }
    });
    for _ in 0..5 {
        let output = run(dir.path(), &["store", "export", &export], "").await;
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let lines = fs::read_to_string(&export).expect("an export");
        let count = lines.lines().count() - 1;
        assert!(lines.starts_with("{\"keybearer_store\"") && lines.contains(&format!("\"count\":{count}")), "{count}");
    }
    busy.abort();
    assert_eq!(
        fs::read_dir(dir.path())
            .expect("a directory")
            .filter(|entry| {
                entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("export.jsonl."))
            })
            .count(),
        0,
        "nothing is left beside it"
    );
}

/// What is done to the store's file, and what may come of it at the next start.
#[tokio::test]
async fn a_damaged_file_is_a_sentence_or_one_connections_problem_and_never_a_panic() {
    let kept = Kept::start().await;
    let sidecar = Sidecar::start(&kept.config("")).await;
    let (mut dir, addresses, _) = sidecar.crash().await;
    let file = dir.path().join("state/tokens.redb");
    let good = fs::read(&file).expect("the store");
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
        ("a page less".into(), good[..length - 4096].to_vec()),
        ("garbage behind".into(), [good.clone(), vec![0xa5; 5000]].concat()),
    ];
    let mut random = fastrand::Rng::with_seed(7);
    cases.extend((0..12).map(|_| random.usize(..length)).map(|at| (format!("byte {at} flipped"), flipped(at))));
    let (mut refused, mut served) = (0, 0);
    for (what, bytes) in cases {
        fs::write(&file, &bytes).expect("a file");
        let mut sidecar = Sidecar::begin(dir, &[]);
        let up = sidecar.listens(addresses).await;
        let log = if up {
            served += 1;
            sidecar.until_ready().await;
            assert_eq!(get(&sidecar, "").await.status, 200, "{what}: {}", sidecar.log());
            let (left, _, log) = sidecar.crash().await;
            dir = left;
            log
        } else {
            refused += 1;
            assert_eq!(sidecar.exit().await.code(), Some(1), "{what}: {}", sidecar.log());
            let (left, _, log) = sidecar.crash().await;
            assert!(log.contains("tokens.redb"), "{what}: {log}");
            assert!(fs::read(&file).expect("the file") == bytes, "{what}: it is left as it is");
            dir = left;
            log
        };
        assert!(!log.contains("panicked at") && !log.contains("canary"), "{what}: {log}");
    }
    assert!(refused >= 3 && served >= 1, "{refused} refused, {served} served");
}

#[tokio::test]
async fn a_link_in_place_of_the_store_or_its_key_is_refused() {
    let kept = Kept::start().await;
    for name in ["tokens.redb", "seal-key"] {
        let sidecar = Sidecar::start(&kept.config("")).await;
        let (dir, _, _) = sidecar.crash().await;
        let place = dir.path().join("state").join(name);
        fs::rename(&place, dir.path().join("elsewhere")).expect("moved");
        symlink(dir.path().join("elsewhere"), &place).expect("a link");
        let output = run(dir.path(), &["run"], "").await;
        assert_eq!(output.status.code(), Some(1), "{name}: {}", said(&output));
        assert!(said(&output).contains(name), "{}", said(&output));
    }
}

#[tokio::test]
async fn without_a_place_for_it_tokens_are_in_memory_unless_a_person_is_needed() {
    let kept = Kept::start().await;
    let top = "state_dir: /dev/null/nowhere\n";
    let sidecar = Sidecar::start(&kept.config(top)).await;
    assert_eq!(get(&sidecar, "").await.status, 200);
    assert!(sidecar.log().contains("in memory"), "{}", sidecar.log());
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let dir = tempfile::tempdir().expect("a directory");
    let text = person(&server, &upstream, top, ", grant: authorization_code");
    fs::write(dir.path().join("keybearer.yaml"), text).expect("a configuration");
    for command in ["check", "run"] {
        let output = run(dir.path(), &[command], "").await;
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("cannot be written, and a connection needs a person"), "{}", said(&output));
    }
}

#[tokio::test]
async fn a_full_disk_loses_no_token_and_heals_by_itself() {
    let disk = Disk::mount(2);
    let server = AuthorizationServer::al(json!({ "lifetime": 2 })).await;
    let upstream = Upstream::start(&server).await;
    let keys = "client_id: owner, client_secret: owner-secret, grant: password, username: ann, password: ann-password";
    let top = format!("state_dir: {}\n", disk.path.display());
    let sidecar = Sidecar::start(&connection(&server, &upstream, &top, keys)).await;
    assert_eq!(get(&sidecar, "").await.status, 200, "{}", sidecar.log());
    let filler = disk.fill();
    let failed = "keybearer_store_operations_total{operation=\"save\",outcome=\"failed\"}";
    sidecar.until_metric(failed, |count| count >= 2.0).await;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let answer = get(&sidecar, "").await;
        assert_eq!(answer.status, 200, "{}\n{}", answer.text(), sidecar.log());
        sleep(Duration::from_millis(30)).await;
    }
    sidecar.logged("could not be saved").await;
    fs::remove_file(filler).expect("room again");
    let saved = "keybearer_store_operations_total{operation=\"save\",outcome=\"ok\"}";
    let before = sidecar.metric(saved).await;
    sidecar.until_metric(saved, |count| count > before).await;
    // The crash shall not fall between a rotation and its write: the next token lasts, and is saved before it is told of.
    server.control(json!({ "lifetime": 60 })).await;
    sidecar.logged("\"lifetime_s\":60.0").await;
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!(get(&sidecar, "").await.status, 200);
    assert_eq!(server.stats().await["reused"], 0, "{}", sidecar.log());
}

/// A small file system of its own.
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
        assert!(mounted.is_ok_and(|status| status.success()), "a tmpfs cannot be mounted: run the tests as root");
        Disk { path, _dir: dir }
    }

    /// Takes all the room there is.
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
async fn secrets_are_set_listed_used_and_removed_with_and_without_an_instance() {
    let kept = Kept::start().await;
    let config = kept.config("").replace("client_secret: canary-client-secret", "client_secret: {store: crm/secret}");
    let dir = tempfile::tempdir().expect("a directory");
    let listeners = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n";
    fs::write(dir.path().join("keybearer.yaml"), format!("{listeners}{config}")).expect("a configuration");
    let missing = run(dir.path(), &["check"], "").await;
    assert_eq!(missing.status.code(), Some(2));
    assert!(
        said(&missing)
            .contains("the store has no secret `crm/secret`; put it there: `keybearer secret set crm/secret`")
    );
    assert!(!dir.path().join("state/tokens.redb").exists(), "check makes nothing");

    for (name, value) in [("crm/secret", "first-value\n"), ("spare", "x")] {
        let set = run(dir.path(), &["secret", "set", name], value).await;
        assert_eq!(set.status.code(), Some(0), "{}", said(&set));
    }
    assert_eq!(said(&run(dir.path(), &["secret", "list"], "").await), "crm/secret\nspare\n");
    assert_eq!(run(dir.path(), &["secret", "remove", "spare"], "").await.status.code(), Some(0));
    assert_eq!(run(dir.path(), &["secret", "remove", "spare"], "").await.status.code(), Some(1));
    assert_eq!(run(dir.path(), &["secret", "set", "a b"], "x").await.status.code(), Some(1));
    assert_eq!(run(dir.path(), &["secret", "set", "empty"], "\n").await.status.code(), Some(1));

    let sidecar = Sidecar::start_over(dir, 2, &[]).await;
    assert_eq!(get(&sidecar, "").await.status, 200, "{}", sidecar.log());
    let body = |number: usize| String::from_utf8_lossy(&kept.server.received()[number].body).into_owned();
    assert!(body(0).contains("client_secret=first-value"), "{}", body(0));

    let admin = format!("http://{}", sidecar.admin());
    let set = run(sidecar.dir.path(), &["secret", "set", "crm/secret", "--admin", &admin], "second-value").await;
    assert_eq!(set.status.code(), Some(0), "{}", said(&set));
    sidecar.logged("configuration reloaded").await;
    let asked = kept.asked();
    assert_eq!(call(sidecar.admin(), "POST", "/connections/erp/refresh", &json!({})).await.status, 200);
    assert!(body(asked).contains("client_secret=second-value"), "{}", body(asked));
    let listed = run(sidecar.dir.path(), &["secret", "list", "--admin", &admin], "").await;
    assert_eq!(said(&listed), "crm/secret\n");
    assert!(!sidecar.log().contains("second-value"));
}

#[tokio::test]
async fn a_key_that_others_could_read_is_closed_to_them_and_told_of() {
    let server = AuthorizationServer::op(json!({ "lifetime": 60 })).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&person(&server, &upstream, "", ", grant: authorization_code")).await;
    assert_eq!(hand_in(&sidecar, &server.refresh_token("ann").await, None).await.status, 200);
    let (dir, addresses, _) = sidecar.crash().await;
    let file = dir.path().join("state/seal-key");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("others may read it");
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!(get(&sidecar, "").await.status, 200, "{}", sidecar.log());
    assert_eq!(fs::metadata(state(&sidecar).join("seal-key")).expect("the key").mode() & 0o777, 0o600);
    assert!(sidecar.log().contains("seal-key"), "it tells of it");
}
