//! `keybearer ca`: its files and output, read by OpenSSL.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A temporary working directory for commands.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("a readable file")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null()).env_remove("SSL_CERT_FILE");
        command.output().expect("the command starts")
    }

    fn keybearer(&self, arguments: &[&str]) -> Output {
        self.run(env!("CARGO_BIN_EXE_keybearer"), arguments)
    }

    /// Creates a CA in `ca.pem` and `ca.key`, with further arguments.
    fn init(&self, more: &[&str]) -> Output {
        self.keybearer(&[&["ca", "init", "--certificate", "ca.pem", "--key", "ca.key"], more].concat())
    }

    #[track_caller]
    fn openssl(&self, arguments: &[&str]) -> String {
        let output = self.run("openssl", arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// Creates a leaf certificate for one name, signed by the CA in `ca.pem`.
    fn sign(&self, name: &str, san: &str) {
        let subject = format!("/CN={name}");
        let (key, request, leaf) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        self.openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            &subject,
            "-addext",
            &format!("subjectAltName={san}"),
            "-keyout",
            &key,
            "-out",
            &request,
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-copy_extensions",
            "copy",
            "-days",
            "1",
            "-out",
            &leaf,
        ]);
    }

    fn verifies(&self, name: &str) -> bool {
        self.run("openssl", &["verify", "-CAfile", "ca.pem", &format!("{name}.pem")]).status.success()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("a file").permissions().mode() & 0o777
}

#[test]
fn ca_init_creates_a_ca_that_may_sign_leaf_certificates_only() {
    let folder = Folder::new();
    let output = folder.init(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(mode(&folder.path("ca.key")), 0o600);
    let text = folder.openssl(&["x509", "-in", "ca.pem", "-noout", "-text"]);
    for line in [
        "CA:TRUE, pathlen:0",
        "X509v3 Basic Constraints: critical",
        "X509v3 Key Usage: critical",
        "Certificate Sign, CRL Sign",
        "Subject: CN = Keybearer interception CA",
        "id-ecPublicKey",
    ] {
        assert!(text.contains(line), "CI-15 {line}: {text}");
    }
    assert!(!text.contains("Name Constraints") && !text.contains("Digital Signature"), "{text}");
    folder.openssl(&["verify", "-CAfile", "ca.pem", "ca.pem"]);
    assert_eq!(
        folder.openssl(&["pkey", "-in", "ca.key", "-pubout"]),
        folder.openssl(&["x509", "-in", "ca.pem", "-noout", "-pubkey"])
    );
    folder.sign("any.test", "DNS:any.test,IP:10.1.2.3");
    assert!(folder.verifies("any.test"));
    let printed = stdout(&output);
    assert!(printed.contains("interception: {ca_certificate: ca.pem, ca_key: {file: ca.key}}"), "{printed}");
    let secret = folder.read("ca.key");
    let secret = secret.lines().nth(1).expect("a line of the key");
    assert!(!printed.contains(secret) && !stderr(&output).contains(secret));
}

#[test]
fn a_constrained_ca_is_valid_only_for_the_hosts_of_routes() {
    let folder = Folder::new();
    let config = "connections:\n- {name: crm, client_id: a, token_url: \"https://idp.test/token\", routes: [{host: api.acme.test}, \
                  {host: \"*.wild.test:8443\"}, {mount: /x, upstream: \"https://mounted.test\"}]}\n";
    std::fs::write(folder.path("keybearer.yaml"), config).expect("a file");
    let output = folder.init(&["--constrain", "--config", "keybearer.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("for api.acme.test, wild.test and their subdomains"), "{}", stdout(&output));
    let text = folder.openssl(&["x509", "-in", "ca.pem", "-noout", "-text"]);
    assert!(text.contains("X509v3 Name Constraints: critical"), "CI-15 {text}");
    for (name, san, expected) in [
        ("api.acme.test", "DNS:api.acme.test", true),
        ("a.wild.test", "DNS:a.wild.test", true),
        ("acme.test", "DNS:acme.test", false),
        ("mounted.test", "DNS:mounted.test", false),
        ("address", "IP:10.1.2.3", false),
        ("address6", "IP:fd00::1", false),
    ] {
        folder.sign(name, san);
        assert_eq!(folder.verifies(name), expected, "{name}");
    }
    std::fs::write(folder.path("empty.yaml"), "connections: []\n").expect("a file");
    let output = folder.keybearer(&[
        "ca",
        "init",
        "--certificate",
        "b.pem",
        "--key",
        "b.key",
        "--constrain",
        "--config",
        "empty.yaml",
    ]);
    assert_eq!((output.status.code(), folder.path("b.pem").exists()), (Some(1), false), "{}", stderr(&output));
}

#[test]
fn ca_init_overwrites_nothing_and_leaves_no_partial_ca() {
    for there in ["ca.pem", "ca.key"] {
        let folder = Folder::new();
        std::fs::write(folder.path(there), "mine").expect("a file");
        let output = folder.init(&[]);
        assert_eq!(output.status.code(), Some(1), "{there}");
        assert!(stderr(&output).contains(&format!("{there} already exists")), "{}", stderr(&output));
        let names: Vec<_> = std::fs::read_dir(folder.0.path()).expect("a folder").collect();
        assert_eq!((names.len(), folder.read(there).as_str()), (1, "mine"), "{there}");
    }
    let folder = Folder::new();
    let output = folder.keybearer(&["ca", "init", "--certificate", "ca.pem", "--key", "nowhere/ca.key"]);
    assert_eq!((output.status.code(), folder.path("ca.pem").exists()), (Some(1), false), "{}", stderr(&output));
}

#[test]
fn ca_export_writes_the_certificate_optionally_with_the_systems_roots() {
    let folder = Folder::new();
    folder.init(&[]);
    // Only the certificate of a file that also holds the key is exported.
    std::fs::write(folder.path("both.pem"), folder.read("ca.key") + &folder.read("ca.pem")).expect("a file");
    let alone = folder.keybearer(&["ca", "export", "--certificate", "both.pem"]);
    assert_eq!((alone.status.code(), stdout(&alone)), (Some(0), folder.read("ca.pem")));
    let bundle = stdout(&folder.keybearer(&["ca", "export", "--certificate", "ca.pem", "--bundle"]));
    assert!(bundle.starts_with(&folder.read("ca.pem")));
    let count = bundle.matches("BEGIN CERTIFICATE").count();
    assert!(count > 50, "{count} certificates");
    // OpenSSL reads the whole bundle, and finds a root of the system in it.
    std::fs::write(folder.path("bundle.pem"), &bundle).expect("a file");
    let read = folder.openssl(&["crl2pkcs7", "-nocrl", "-certfile", "bundle.pem"]);
    std::fs::write(folder.path("bundle.p7"), read).expect("a file");
    let listed = folder.openssl(&["pkcs7", "-in", "bundle.p7", "-print_certs"]);
    assert_eq!(listed.matches("BEGIN CERTIFICATE").count(), count);
    let system = std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").expect("a readable file");
    let end = "-----END CERTIFICATE-----\n";
    let root = &system[..system.find(end).expect("a root") + end.len()];
    std::fs::write(folder.path("root.pem"), root).expect("a file");
    folder.openssl(&["verify", "-no_check_time", "-no-CApath", "-CAfile", "bundle.pem", "root.pem"]);
    for bad in ["ca.key", "nowhere.pem"] {
        let output = folder.keybearer(&["ca", "export", "--certificate", bad]);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""), "{bad}");
        assert!(stderr(&output).starts_with(bad), "{}", stderr(&output));
    }
}
