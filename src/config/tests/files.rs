//! Files that the configuration refers to: includes, references, secrets, certificates.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::model::StoreSettings;
use crate::model::secret::{Secret, VaultError};

pub(super) struct Folder(tempfile::TempDir);

/// A fake store with one secret; the names `in-use` and `broken` fail.
struct FakeVault;

impl Vault for FakeVault {
    fn secret(&self, _: &StoreSettings, _: &Path, name: &str) -> Result<Option<Secret>, VaultError> {
        match name {
            "crm/secret" => Ok(Some(Secret::new("s3cret"))),
            "in-use" => Err(VaultError::InUse),
            "broken" => Err(VaultError::Failed("it is damaged".to_owned())),
            _ => Ok(None),
        }
    }
}

impl Folder {
    pub(super) fn new(files: &[(&str, &str)]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = folder.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        }
        folder
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    #[track_caller]
    pub(super) fn accept(&self) -> Loaded {
        load(&self.path("main.yaml"), Arc::new(FakeVault), &[]).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// Loads the files with definitions that were made over the API.
    #[track_caller]
    pub(super) fn with_stored(&self, stored: &[StoredDefinition]) -> Loaded {
        load(&self.path("main.yaml"), Arc::new(FakeVault), stored).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// The problems, one per line.
    #[track_caller]
    pub(super) fn problems(&self) -> String {
        let Err(problems) = load(&self.path("main.yaml"), Arc::new(FakeVault), &[]) else { panic!("accepted") };
        problems.to_string()
    }

    #[track_caller]
    fn check(&self, expected: &[&str]) {
        let Err(problems) = load(&self.path("main.yaml"), Arc::new(FakeVault), &[]) else { panic!("accepted") };
        compare(&problems, &format!("{}/", self.0.path().display()), expected);
    }
}

fn connection(name: &str, more: &str) -> String {
    format!("connections:\n  - {{{}{more}}}\n", GOOD.replace("crm", name))
}

#[test]
fn connections_of_included_files_are_read_in_order_of_file_names() {
    let folder = Folder::new(&[
        ("main.yaml", &format!("include: [more]\n{}", connection("a", ""))),
        ("more/2.yaml", &connection("c", ", client_secret: {file: s}")),
        ("more/1.yaml", &connection("b", "")),
        ("more/s", "secret\r\n"),
        ("more/.hidden.yaml", "nonsense"),
        ("more/3.yml", "nonsense"),
        ("more/4.yaml", "connections: []\n"),
    ]);
    let loaded = folder.accept();
    let names: Vec<_> = loaded.model.connections.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let auth = &loaded.model.connections[2].client_auth;
    assert!(matches!(auth, crate::model::connection::ClientAuth::Body(s) if s[0].expose() == "secret"));
    let files = ["main.yaml", "more/1.yaml", "more/2.yaml", "more/4.yaml", "more/s"].map(|name| folder.path(name));
    assert_eq!((loaded.files, loaded.warnings), (files.to_vec(), vec![]));
}

#[test]
fn problems_of_included_files_have_their_own_position() {
    let folder = Folder::new(&[
        ("main.yaml", &format!("include: [more, nowhere]\n{}", connection("a", ", colour: red"))),
        ("more/1.yaml", &connection("a", ", grant: pigeon")),
        ("more/2.yaml", "workers: 2\nnonsense: 1\nconnections: []\n"),
        ("more/3.yaml", "a: [\n"),
    ]);
    let nowhere = format!("main.yaml:1:17: include[1]: {} cannot be read", folder.path("nowhere").display());
    let first = format!(
        "more/1.yaml:2:12: connections[0].name: another connection is named `a` ({}:3)",
        folder.path("main.yaml").display()
    );
    folder.check(&[
        &nowhere,
        "main.yaml:3:74: connections[0].colour: unknown key `colour`",
        &first,
        "more/1.yaml:2:81: connections[0].grant: `pigeon` is not a valid value",
        "more/2.yaml:1:1: workers: `workers` is not allowed in an included file",
        "more/2.yaml:2:1: nonsense: unknown key `nonsense`",
        "more/3.yaml:2:1: ",
    ]);
}

#[test]
fn the_value_of_a_reference_is_never_parsed_again() {
    let text = connection(
        "a",
        ",\n    audience: \"<${file:tricky}>\", resource: \"$${env:HOME}$${\", comments: \"${file:nothing}\"",
    );
    let folder = Folder::new(&[("main.yaml", &text), ("tricky", "${env:HOME}: [&x]\n"), ("nothing", "")]);
    let model = folder.accept().model;
    let connection = &model.connections[0];
    assert_eq!(connection.audience.as_deref(), Some("<${env:HOME}: [&x]>"));
    assert_eq!((connection.resource.as_deref(), connection.comments.as_deref()), (Some("${env:HOME}${"), Some("")));
}

#[test]
fn unresolvable_references_are_problems_that_quote_no_content() {
    let text = connection(
        "a",
        ",\n    audience: \"${env:KEYBEARER_NOT_SET}\",\n    resource: \"${file:gone}\",\n    refresh_ahead: \"${file:secret}\",\n    scopes: \"${env:X\",\n    comments: \"${file:binary}\"",
    );
    let folder = Folder::new(&[("main.yaml", &text), ("secret", "hunter2")]);
    fs::write(folder.path("binary"), [0xff, 0xfe]).unwrap();
    let gone = format!(
        "main.yaml:4:15: connections[0].resource: {} cannot be read (no such file)",
        folder.path("gone").display()
    );
    folder.check(&[
        "main.yaml:3:15: connections[0].audience: environment variable `KEYBEARER_NOT_SET` is not set",
        &gone,
        "main.yaml:5:20: connections[0].refresh_ahead: `${file:secret}` is not a duration",
        "main.yaml:6:13: connections[0].scopes: contains `${` without a reference",
        &format!("main.yaml:7:15: connections[0].comments: {} is not UTF-8", folder.path("binary").display()),
    ]);
}

#[test]
fn one_trailing_line_break_of_a_secret_file_is_dropped_and_world_readable_files_are_rejected() {
    let files = [
        ("main.yaml", &*connection("a", ", client_secret: [{file: open}, \"${file:shut}\", {env: PATH}]")),
        ("open", "one\n\n"),
        ("shut", "two"),
    ];
    let folder = Folder::new(&files);
    fs::set_permissions(folder.path("open"), Permissions::from_mode(0o644)).unwrap();
    let loaded = folder.accept();
    let crate::model::connection::ClientAuth::Body(secrets) = &loaded.model.connections[0].client_auth else {
        panic!()
    };
    assert_eq!((secrets[0].expose(), secrets[1].expose()), ("one\n", "two"));
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].message.ends_with("is world-readable"));
    fs::write(folder.path("shut"), "\n").unwrap();
    fs::write(folder.path("open"), "x".repeat(70_000)).unwrap();
    let large = format!(
        "main.yaml:2:97: connections[0].client_secret[0].file: {} cannot be read (larger",
        folder.path("open").display()
    );
    folder.check(&[&large, "main.yaml:2:104: connections[0].client_secret[1]: the secret is empty"]);
}

#[test]
fn certificates_are_read_or_rejected() {
    let authority = include_str!("ca.pem");
    let own = connection("a", ", authorization_server: {trust: [ca.pem, ca.pem]}");
    let folder = Folder::new(&[("main.yaml", &format!("trust: [ca.pem]\n{own}")), ("ca.pem", authority)]);
    let loaded = folder.accept();
    let server = &loaded.model.connections[0].authorization_server;
    assert_eq!((loaded.model.trust.len(), server.trust.as_ref().map(|roots| roots.len())), (1, Some(2)));
    assert_eq!(loaded.files, [folder.path("ca.pem"), folder.path("main.yaml")]);
    fs::write(folder.path("ca.pem"), "nonsense").unwrap();
    let empty = format!("{} holds no certificate", folder.path("ca.pem").display());
    folder.check(&[
        &format!("main.yaml:1:9: trust[0]: {empty}"),
        &format!("main.yaml:3:105: connections[0].authorization_server.trust[0]: {empty}"),
        &format!("main.yaml:3:113: connections[0].authorization_server.trust[1]: {empty}"),
    ]);
}

#[test]
fn a_main_file_that_cannot_be_read_is_a_problem() {
    Folder::new(&[]).check(&["main.yaml:1:1: cannot be read (no such file)"]);
    let folder = Folder::new(&[]);
    fs::create_dir(folder.path("main.yaml")).unwrap();
    folder.check(&["main.yaml:1:1: cannot be read (not a regular file)"]);
    let folder = Folder::new(&[("main.yaml", "")]);
    fs::write(folder.path("main.yaml"), b"a: 1\nb: \xff").unwrap();
    folder.check(&["main.yaml:2:4: is not UTF-8"]);
    fs::File::create(folder.path("main.yaml")).unwrap().set_len(100 << 20).unwrap();
    folder.check(&["main.yaml:1:1: cannot be read (larger than 4194304 bytes)"]);
}

#[test]
fn a_secret_is_read_from_the_store() {
    let with = |secret: &str, top: &str| {
        let url = "https://as.test/token";
        let connection = format!("{{name: a, client_id: b, client_secret: {secret}, token_url: {url}}}");
        Folder::new(&[("main.yaml", &format!("{top}\nconnections: [{connection}]\n"))])
    };
    let loaded = with("{store: crm/secret}", "").accept();
    let auth = &loaded.model.connections[0].client_auth;
    assert!(matches!(auth, crate::model::connection::ClientAuth::Body(s) if s[0].expose() == "s3cret"));
    let other = with("{store: in-use}", "").accept();
    assert_ne!(loaded.fingerprint, other.fingerprint);
    assert!(other.warnings[0].message.contains("while a running instance uses the store"), "{:?}", other.warnings);
    let at = "main.yaml:2:62: connections[0].client_secret.store:";
    with("{store: nothing}", "").check(&[&format!("{at} the store has no secret `nothing`; add it with")]);
    with("{store: broken}", "").check(&[&format!("{at} `broken` cannot be read from the store: it is damaged; fix")]);
    with("{store: \"a b\"}", "").check(&[&format!("{at} is not a valid name of a stored secret")]);
    with("{store: x}", "store: {memory: {}}").check(&[&format!("{at} a store in memory keeps no secrets")]);
    with("{store: x, file: y}", "")
        .check(&["main.yaml:2:54: connections[0].client_secret: must have exactly one source"]);
    let own = with("x", "store: {seal_key: {store: x}}");
    own.check(&["main.yaml:1:27: store.seal_key.store: the store's own key cannot be in the store"]);
}
