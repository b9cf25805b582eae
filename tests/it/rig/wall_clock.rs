//! A fake wall clock for one program, set by the test through a file that libfaketime reads. The boot clock stays real.

pub struct WallClock(tempfile::NamedTempFile);

impl WallClock {
    /// Starts with the real time.
    pub fn start() -> WallClock {
        let clock = WallClock(tempfile::NamedTempFile::new().expect("a file"));
        clock.set("+0");
        clock
    }

    /// Sets the offset from the real time, in libfaketime's notation: `+9m`.
    pub fn set(&self, offset: &str) {
        std::fs::write(self.0.path(), offset).expect("write succeeds");
    }

    /// Environment for the program that uses this clock.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1".to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.path().display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}
