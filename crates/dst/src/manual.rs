//! `dst man` and `dst completions`: manual pages and shell completions, made from the definition of the command line.

use std::fs;
use std::io;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man as Page;

use crate::cli::{Cli, Completions, Man};
use crate::exit::{Code, Failure, Outcome};
use crate::render;

/// Runs `dst completions`.
///
/// # Errors
/// Standard output can't be written to.
pub fn completions(options: &Completions) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "dst", &mut text);
    render::print(&String::from_utf8_lossy(&text))
}

/// Runs `dst man`.
///
/// # Errors
/// There is no such command, or a file can't be written.
pub fn run(options: &Man) -> Outcome {
    let pages = pages().map_err(Failure::io("can't make manual pages"))?;
    let Some(dir) = &options.dir else {
        let name = match &options.command {
            None => "dst".to_owned(),
            Some(command) => format!("dst-{command}"),
        };
        let page = pages.iter().find(|(page, _)| *page == name);
        let (_, text) = page.ok_or_else(|| {
            Failure::new(Code::Usage, format!("there is no page {name}"))
                .hint("`dst --help` lists the commands")
        })?;
        return render::print(text);
    };
    fs::create_dir_all(dir).map_err(Failure::io(format!("can't make {}", dir.display())))?;
    for (name, text) in pages {
        let path = dir.join(format!("{name}.1"));
        fs::write(&path, text).map_err(Failure::io(format!("can't write {}", path.display())))?;
        render::line(&path.display().to_string())?;
    }
    Ok(())
}

/// The name and text of every page: of the command itself, and of each of its subcommands.
fn pages() -> io::Result<Vec<(String, String)>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = vec![("dst".to_owned(), page(&command)?)];
    for sub in command.get_subcommands() {
        if !sub.is_hide_set() {
            pages.push((format!("dst-{}", sub.get_name()), page(sub)?));
        }
    }
    Ok(pages)
}

/// One page. What stands below the options in the help is laid out by hand and stays so.
fn page(command: &Command) -> io::Result<String> {
    let page = Page::new(command.clone())
        .manual("DST")
        .source(concat!("dst ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    let mut text = String::from_utf8_lossy(&text).into_owned();
    let below = command.get_after_long_help().or(command.get_after_help());
    let below = below.map_or_else(String::new, ToString::to_string);
    let (mut section, mut open) = ("NOTES", false);
    for line in below.lines() {
        // A heading: `Examples:`
        if let Some(heading) = line.strip_suffix(':').filter(|line| is_heading(line)) {
            section = heading;
            open = close(&mut text, open);
        } else if !line.is_empty() {
            if !open {
                text.push_str(&format!(".SH \"{}\"\n.nf\n", section.to_uppercase()));
                open = true;
            }
            text.push_str(&literal(line));
        } else if open {
            text.push('\n');
        }
    }
    close(&mut text, open);
    text.push_str(".SH \"SEE ALSO\"\n");
    text.push_str(if command.has_subcommands() {
        "\\fBdst\\-serve\\fR(1), \\fBdst\\-attach\\fR(1)\n"
    } else {
        "\\fBdst\\fR(1), which lists the exit codes and the forms of URLs\n"
    });
    Ok(text)
}

fn is_heading(line: &str) -> bool {
    line.starts_with(|first: char| first.is_ascii_uppercase())
        && line.len() < 20
        && !line.contains(". ")
}

/// Ends a section, if one is open.
fn close(text: &mut String, open: bool) -> bool {
    if open {
        while text.ends_with("\n\n") {
            text.pop();
        }
        text.push_str(".fi\n");
    }
    false
}

/// A line as it stands, in the language of roff (groff_man(7)).
fn literal(line: &str) -> String {
    let line = line
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    // A dot at the start would be a request.
    format!("\\&{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_all_its_options_and_examples() {
        let mut command = Cli::command();
        command.build();
        let pages = pages().unwrap();
        let text = |name: &str| {
            let page = pages.iter().find(|(page, _)| page == name);
            page.unwrap_or_else(|| panic!("no page {name}")).1.as_str()
        };
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            if sub.get_name() == "help" {
                continue;
            }
            let page = text(&format!("dst-{}", sub.get_name()));
            assert!(page.contains(".SH \"EXAMPLES\"\n.nf\n"), "{page}");
            for option in sub.get_opts().filter(|option| !option.is_hide_set()) {
                let long = option.get_long().unwrap().replace('-', "\\-");
                assert!(page.contains(&format!("\\-\\-{long}")), "{long} in {page}");
            }
        }
        assert!(!pages
            .iter()
            .any(|(name, _)| name.contains("agent") || name.contains("udev")));
        let main = text("dst");
        for (_, meaning) in crate::exit::Code::ALL {
            assert!(
                main.contains(literal(meaning).trim_start_matches("\\&").trim()),
                "{meaning}"
            );
        }
        assert!(main.contains(".SH \"EXIT CODES\""), "{main}");
    }

    #[test]
    fn lines_are_shown_as_they_stand() {
        assert_eq!(literal(".x"), "\\&.x\n");
        assert_eq!(literal("a\\b 'c' --d"), "\\&a\\eb \\(aqc\\(aq \\-\\-d\n");
    }

    #[test]
    fn completions_know_every_command_and_option() {
        for shell in [
            clap_complete::Shell::Bash,
            clap_complete::Shell::Zsh,
            clap_complete::Shell::Fish,
        ] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dst", &mut text);
            let text = String::from_utf8(text).unwrap();
            let mut command = Cli::command();
            command.build();
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                assert!(text.contains(sub.get_name()), "{shell}: {}", sub.get_name());
                for option in sub.get_opts().filter_map(|option| option.get_long()) {
                    assert!(text.contains(option), "{shell}: {option}");
                }
            }
        }
    }
}
