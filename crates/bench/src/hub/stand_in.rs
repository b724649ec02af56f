//! A hub of one repository on this machine, for tests.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha2::Digest;

use crate::source::hex;

/// What the stand-in answers.
#[derive(Clone, Default)]
pub(super) struct Answers {
    /// `organisation/name`.
    pub(super) name: String,
    /// The commit of every revision.
    pub(super) commit: String,
    /// The files by name.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Paths that end so are answered with this status.
    pub(super) statuses: Vec<(String, u16)>,
    /// Bytes after which each coming answer with this file breaks off, one entry an answer.
    pub(super) breaks: Vec<(String, usize)>,
    /// Whether whole files come without their length, so that a reader cannot see the break.
    pub(super) hides_length: bool,
    /// Content sent in place of a file's own.
    pub(super) forged: BTreeMap<String, Vec<u8>>,
}

/// A running stand-in; it stops when dropped.
pub(super) struct StandIn {
    /// Its address.
    pub(super) endpoint: String,
    answers: Arc<Mutex<Answers>>,
    requests: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    pub(super) fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let answers = Arc::new(Mutex::new(answers));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (shared, log) = (answers.clone(), requests.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(request) = Request::read(stream.unwrap()) else {
                    continue;
                };
                if request.path == "/stop" {
                    break;
                }
                log.lock().unwrap().push(request.path.clone());
                answer(&mut shared.lock().unwrap(), request);
            }
        });
        Self {
            endpoint,
            answers,
            requests,
            thread: Some(thread),
        }
    }

    /// Changes what it answers from now on.
    pub(super) fn change(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.answers.lock().unwrap());
    }

    /// The paths it was asked for since the last call.
    pub(super) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let address = self.endpoint.trim_start_matches("http://");
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.write_all(b"GET /stop HTTP/1.1\r\n\r\n").ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Request {
    stream: TcpStream,
    path: String,
    /// First and last byte asked for.
    range: Option<(usize, Option<usize>)>,
    authorised: bool,
}

impl Request {
    fn read(stream: TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let first = lines.next()?.ok()?;
        let target = first.split(' ').nth(1)?.to_string();
        let path = target.split('?').next()?.to_string();
        let (mut range, mut authorised) = (None, false);
        for line in lines {
            let line = line.ok()?.to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(bytes) = line.strip_prefix("range: bytes=") {
                let (from, to) = bytes.split_once('-')?;
                range = Some((from.parse().ok()?, to.parse().ok()));
            }
            authorised |= line == "authorization: bearer secret";
        }
        Some(Self {
            stream,
            path,
            range,
            authorised,
        })
    }

    fn send(&mut self, status: u16, headers: &[(&str, String)], body: &[u8]) {
        let mut head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.stream.write_all((head + "\r\n").as_bytes()).ok();
        self.stream.write_all(body).ok();
    }
}

fn answer(answers: &mut Answers, mut request: Request) {
    let refused = answers
        .statuses
        .iter()
        .find(|(end, _)| request.path.ends_with(end))
        .map(|(_, status)| *status);
    if let Some(status) = refused.filter(|status| *status != 401 || !request.authorised) {
        return request.send(status, &[("Content-Length", "0".into())], b"");
    }
    let (name, commit) = (answers.name.clone(), answers.commit.clone());
    if request
        .path
        .starts_with(&format!("/api/models/{name}/revision/"))
    {
        let body = listing(answers).to_string();
        let length = body.len().to_string();
        return request.send(200, &[("Content-Length", length)], body.as_bytes());
    }
    let file = request
        .path
        .strip_prefix(&format!("/{name}/resolve/{commit}/"))
        .map(str::to_string);
    match file {
        Some(file) if answers.files.contains_key(&file) => send_file(answers, &file, request),
        _ => request.send(404, &[("Content-Length", "0".into())], b""),
    }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// SHA-256 of large files and something of a commit's length for others, as on the hub.
fn tag(name: &str, content: &[u8]) -> String {
    let mut digest = hex(&sha2::Sha256::digest(content));
    digest.truncate(if is_large(name) { 64 } else { 40 });
    digest
}

fn listing(answers: &Answers) -> serde_json::Value {
    let file = |(name, content): (&String, &Vec<u8>)| {
        let mut file = serde_json::json!({
            "rfilename": name, "size": content.len(), "blobId": tag("", content),
        });
        if is_large(name) {
            file["lfs"] = serde_json::json!({ "sha256": tag(name, content) });
        }
        file
    };
    let siblings: Vec<_> = answers.files.iter().map(file).collect();
    serde_json::json!({ "sha": answers.commit, "siblings": siblings })
}

fn send_file(answers: &mut Answers, name: &str, mut request: Request) {
    let content = &answers.files[name];
    let etag = format!("\"{}\"", tag(name, content));
    let content = answers.forged.get(name).unwrap_or(content);
    let total = content.len();
    let (from, to) = request.range.unwrap_or((0, None));
    if from >= total {
        return request.send(416, &[("Content-Length", "0".into())], b"");
    }
    let end = to.map_or(total, |to| (to + 1).min(total));
    let mut body = content[from..end].to_vec();
    let mut headers = vec![
        ("ETag", etag),
        ("X-Repo-Commit", answers.commit.clone()),
        ("Content-Range", format!("bytes {from}-{}/{total}", end - 1)),
    ];
    // The question for the first byte alone is about the headers.
    let whole = to.is_none();
    if !(whole && answers.hides_length) {
        headers.push(("Content-Length", body.len().to_string()));
    }
    let cut = answers.breaks.iter().position(|(file, _)| file == name);
    if let Some(cut) = cut.filter(|_| whole) {
        body.truncate(answers.breaks.remove(cut).1);
    }
    request.send(206, &headers, &body);
}
