import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.concurrent.CountDownLatch;
import org.codelibs.opensearch.runner.OpenSearchRunner;

/** The runner's own main, on any port: its command line refuses every port above 9299. */
public final class OpenSearchNode {
    public static void main(String[] arguments) throws InterruptedException {
        OpenSearchRunner runner = new OpenSearchRunner();
        runner.setMaxHttpPort(-1);
        runner.build(arguments);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(runner)));
        new CountDownLatch(1).await();
    }

    private static void close(OpenSearchRunner runner) {
        try {
            runner.close();
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}
