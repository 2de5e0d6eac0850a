//! Streams in memory. Each end may leave first; the other still gets what was under way.

use std::collections::VecDeque;

#[derive(Debug, Default)]
struct Stream {
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    client: bool,
    server: bool,
    damaged: bool,
}

#[derive(Debug, Default)]
pub struct Wires {
    streams: Vec<Stream>,
}

impl Wires {
    /// A new stream between both ends.
    pub fn open(&mut self) -> u32 {
        self.streams.push(Stream {
            client: true,
            server: true,
            ..Stream::default()
        });
        self.streams.len() as u32 - 1
    }

    fn stream(&mut self, stream: u32) -> &mut Stream {
        &mut self.streams[stream as usize]
    }

    fn nth(&self, nth: usize, which: impl Fn(&Stream) -> bool) -> Option<u32> {
        let found = self
            .streams
            .iter()
            .enumerate()
            .filter(|(_, stream)| which(stream));
        let found: Vec<u32> = found.map(|(at, _)| at as u32).collect();
        Some(found[nth.checked_rem(found.len())?])
    }

    /// A stream on which the server has something to read, or the end.
    pub fn nth_for_server(&self, nth: usize) -> Option<u32> {
        self.nth(nth, |stream| {
            stream.server && (!stream.to_server.is_empty() || !stream.client)
        })
    }

    pub fn nth_for_client(&self, nth: usize) -> Option<u32> {
        self.nth(nth, |stream| {
            stream.client && (!stream.to_client.is_empty() || !stream.server)
        })
    }

    pub fn nth_at_server(&self, nth: usize) -> Option<u32> {
        self.nth(nth, |stream| stream.server)
    }

    pub fn at_server(&self) -> Vec<u32> {
        (0..self.streams.len() as u32)
            .filter(|at| self.streams[*at as usize].server)
            .collect()
    }

    pub fn damage(&mut self, nth: usize, at: usize, bit: u8) {
        let Some(found) = self.nth(nth, |stream| stream.client && stream.server) else {
            return;
        };
        let stream = self.stream(found);
        let queue = if at & 1 == 0 {
            &mut stream.to_server
        } else {
            &mut stream.to_client
        };
        let len = queue.len();
        if let Some(byte) = (at / 2).checked_rem(len).and_then(|at| queue.get_mut(at)) {
            *byte ^= 1 << bit;
            stream.damaged = true;
        }
    }

    pub fn is_damaged(&mut self, stream: u32) -> bool {
        self.stream(stream).damaged
    }

    pub fn client_leaves(&mut self, stream: u32) {
        let stream = self.stream(stream);
        stream.client = false;
        stream.to_client.clear();
    }

    pub fn server_leaves(&mut self, stream: u32) {
        let stream = self.stream(stream);
        stream.server = false;
        stream.to_server.clear();
    }

    pub fn client_sends(&mut self, stream: u32, bytes: &[u8]) {
        let stream = self.stream(stream);
        assert!(stream.client, "sends over a stream that it has left");
        if stream.server {
            stream.to_server.extend(bytes);
        }
    }

    pub fn server_sends(&mut self, stream: u32, bytes: &[u8]) {
        let stream = self.stream(stream);
        assert!(stream.server, "sends over a stream that it has left");
        if stream.client {
            stream.to_client.extend(bytes);
        }
    }

    /// At most `len` bytes for the server; none at the end.
    pub fn server_reads(&mut self, stream: u32, len: usize) -> Option<Vec<u8>> {
        let stream = self.stream(stream);
        let len = len.min(stream.to_server.len());
        let bytes: Vec<u8> = stream.to_server.drain(..len).collect();
        (!bytes.is_empty() || stream.client).then_some(bytes)
    }

    pub fn client_reads(&mut self, stream: u32, len: usize) -> Option<Vec<u8>> {
        let stream = self.stream(stream);
        let len = len.min(stream.to_client.len());
        let bytes: Vec<u8> = stream.to_client.drain(..len).collect();
        (!bytes.is_empty() || stream.server).then_some(bytes)
    }
}
