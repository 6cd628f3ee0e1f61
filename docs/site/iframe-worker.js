// Browsers refuse a Worker on a page that is opened from a folder. There, the script of the search runs in a hidden iframe.
// Material for MkDocs would load such a script from another host. Its search looks for the name IFrameWorker.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.window = frame.contentWindow;
      this.loaded = new Promise((resolve) => frame.addEventListener("load", resolve));
      addEventListener("message", (event) => {
        if (event.source === this.window) this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
      // postMessage is bound here, so that the script answers this page and event.source is the iframe
      this.window.document.open();
      this.window.document.write(
        "<script>postMessage = ((send) => (data) => send(data, '*'))(parent.postMessage.bind(parent))</" + "script>" +
        `<script src="${url}"></` + "script>",
      );
      this.window.document.close();
    }

    postMessage(data) {
      this.loaded.then(() => this.window.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {}
  };
  window.Worker = window.IFrameWorker;
}
