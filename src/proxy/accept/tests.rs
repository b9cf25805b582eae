//! Skipping dead workers; replacing stale socket files.

use super::super::connection_limit::ConnectionLimiter;
use super::*;
use crate::gate::Turn;

#[tokio::test]
async fn a_worker_that_has_exited_is_skipped() {
    let worker = || {
        let (sender, receiver) = mpsc::channel(4);
        (Inbox { sender, open: Arc::default() }, receiver)
    };
    let ((dead, gone), (live, mut inbox)) = (worker(), worker());
    drop(gone);
    let inboxes = [dead, live];
    let limiter = Arc::<ConnectionLimiter>::default();
    let permit = || match limiter.admit(Bounds { permits: 1, queued: 0, sharing: Sharing::Fair }, &Turn::User(0)) {
        Ok(Admission::Admitted(permit)) => permit,
        _ => panic!("not admitted"),
    };
    let accepted = || Accepted {
        stream: Stream::Unix(UnixStream::pair().unwrap().0),
        from: PeerAddress::Unix(0),
        listener: Name::parse("proxy").unwrap(),
        secure: false,
        permit: permit(),
    };
    for _ in 0..3 {
        hand_over(&inboxes, accepted()).await.unwrap();
        inbox.try_recv().unwrap();
    }
    drop(inbox);
    hand_over(&inboxes, accepted()).await.unwrap_err();
}

#[test]
fn binding_replaces_a_stale_socket_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kb.sock");
    let first = bind_unix(&path, 0o640).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(bind_unix(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(first);
    bind_unix(&path, 0o600).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    let file = dir.path().join("notes");
    fs::write(&file, "mine").unwrap();
    assert!(bind_unix(&file, 0o600).is_err());
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}
