//! Writes the test vectors into `vectors/`: `cargo run -p dst-proto --example vectors`.

#[path = "../tests/support/mod.rs"]
mod support;

fn main() -> std::io::Result<()> {
    std::fs::create_dir_all(support::dir())?;
    for (name, text) in support::cases::files() {
        std::fs::write(support::dir().join(name), text)?;
    }
    Ok(())
}
