//! Manual pages and completions as they are installed.

mod common;

use std::process::Command;

use common::Lab;

#[test]
fn every_command_in_the_help_has_a_page_that_man_can_show() {
    let lab = Lab::new();
    lab.dst(&["man", "--dir", "pages"]).ok();
    let help = lab.dst(&["--help"]).ok().out;
    let commands = help.split("Commands:\n").nth(1).unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let names = commands
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    let mut count = 0;
    for name in names.filter(|name| *name != "help") {
        let path = lab.text(&format!("pages/dst-{name}.1"));
        assert!(std::path::Path::new(&path).exists(), "{path}");
        assert_eq!(
            lab.dst(&["man", name]).ok().out,
            std::fs::read_to_string(&path).unwrap()
        );
        count += 1;
        let Ok(shown) = Command::new("man")
            .args(["--warnings", "-l", &path])
            .env("MANPAGER", "cat")
            .output()
        else {
            continue;
        };
        // A machine without manual pages may have a stub.
        if shown.status.success() {
            let text = String::from_utf8_lossy(&shown.stdout);
            assert!(text.contains("EXAMPLES"), "{text}");
            assert!(shown.stderr.is_empty(), "{shown:?}");
        }
    }
    assert!(count >= 9, "{help}");
    lab.dst(&["man", "no-such-command"]).expect(2);
}

#[test]
fn a_shell_takes_its_completions() {
    let lab = Lab::new();
    let script = lab.dst(&["completions", "bash"]).ok().out;
    std::fs::write(lab.path("dst.bash"), script).unwrap();
    let complete = "source ./dst.bash; COMP_WORDS=(dst att); COMP_CWORD=1; _dst dst att dst; \
                    echo ${COMPREPLY[@]}";
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", complete]);
    let shown = bash.current_dir(lab.path(".")).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&shown.stdout).trim(),
        "attach",
        "{shown:?}"
    );
}
