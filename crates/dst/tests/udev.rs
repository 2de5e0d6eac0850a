//! What the udev rule asks for. Partitions are looked for in `vm/tests`: not every kernel has them.

mod common;

use common::{can_attach, Lab};

#[test]
fn udev_learns_name_and_id_of_a_device_and_nothing_of_others() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    let node = std::fs::canonicalize(&device.node).unwrap();
    let node = node.to_str().unwrap();
    let told = lab.dst(&["udev-info", node]).ok().out;
    let id = lab.status(&device.name)["export_id"].clone();
    let id = id.as_str().unwrap();
    for line in [
        format!("DST_NAME={}", device.name),
        format!("DST_EXPORT_ID={id}"),
        format!("ID_SERIAL=dst-{id}"),
    ] {
        assert!(told.lines().any(|found| found == line), "{line}: {told}");
    }
    lab.dst(&["udev-info", "/dev/null"]).expect(13);
    lab.dst(&["detach", &device.name]).ok();
    lab.dst(&["udev-info", node]).expect(13);
}
