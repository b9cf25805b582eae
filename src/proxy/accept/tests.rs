//! Workers that do not run, and socket files that are replaced.

use super::super::seats::Seats;
use super::*;
use crate::gate::Turn;

#[tokio::test]
async fn a_worker_that_does_not_run_is_passed_over() {
    let worker = || {
        let (sender, receiver) = mpsc::channel(4);
        (Inbox { sender, open: Arc::default() }, receiver)
    };
    let ((dead, gone), (live, mut inbox)) = (worker(), worker());
    drop(gone);
    let inboxes = [dead, live];
    let seats = Arc::<Seats>::default();
    let seat = || match seats.ask(Bounds { permits: 1, queued: 0, sharing: Sharing::Fair }, &Turn::User(0)) {
        Ok(Admission::Seated(seat)) => seat,
        _ => panic!("no seat"),
    };
    let accepted = || Accepted {
        stream: Stream::Unix(UnixStream::pair().unwrap().0),
        from: From::User(0),
        listener: Name::parse("proxy").unwrap(),
        secure: false,
        seat: seat(),
    };
    for _ in 0..3 {
        hand_over(&inboxes, accepted()).await.unwrap();
        inbox.try_recv().unwrap();
    }
    drop(inbox);
    hand_over(&inboxes, accepted()).await.unwrap_err();
}

#[test]
fn a_socket_replaces_what_a_dead_program_left_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kb.sock");
    let first = bind_unix(&path, 0o640).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(bind_unix(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(first);
    bind_unix(&path, 0o600).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
    let file = dir.path().join("notes");
    fs::write(&file, "mine").unwrap();
    assert!(bind_unix(&file, 0o600).is_err());
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}
