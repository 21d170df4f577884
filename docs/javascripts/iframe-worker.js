// Browsers start no worker for a page that was opened from disk. The theme's search then runs in a hidden frame, which
// offers what the search needs of a worker: messages in both directions. The theme looks for this class by its name.
window.IFrameWorker = class extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    this.inside = frame.contentWindow;
    this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    const script = this.inside.document.createElement("script");
    script.src = new URL(url, location.href).href;
    this.ready = new Promise((loaded) => script.addEventListener("load", loaded));
    this.inside.document.head.append(script);
  }
  postMessage(data) {
    this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
  }
  terminate() {}
};
if (location.protocol === "file:") window.Worker = window.IFrameWorker;
