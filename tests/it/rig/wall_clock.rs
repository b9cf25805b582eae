//! A wall clock that a test sets, for one program: libfaketime reads it from a file. The clock since boot stays true.

pub struct WallClock(tempfile::NamedTempFile);

impl WallClock {
    /// It shows the true time.
    pub fn start() -> WallClock {
        let clock = WallClock(tempfile::NamedTempFile::new().expect("a file"));
        clock.set("+0");
        clock
    }

    /// Ahead of the true time by `offset`, as libfaketime writes it: `+9m`.
    pub fn set(&self, offset: &str) {
        std::fs::write(self.0.path(), offset).expect("it is written");
    }

    /// For the program that lives by it.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1".to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.path().display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}
